"""Writes the findings in English, as a radiologist would dictate them."""

from __future__ import annotations

import numpy as np

from .truth import Lesion, Truth
from .wording import mentions_calcification, mentions_posterior, pick, stock

NORMAL = {
    "breast": (
        "The skin and subcutaneous fat of both breasts are unremarkable. The glandular tissue is {gland} in both "
        "breasts with clear layers, and the ducts are not dilated. No focal lesion is seen in either breast.",
        "Both breasts show {gland} fibroglandular echotexture. The skin, fat and ducts are unremarkable on both sides. "
        "No mass or nodule is seen on the left or right.",
        "Skin and ducts of both breasts are unremarkable; the glandular tissue is {gland} with clear layers. There is "
        "no focal lesion on either side.",
    ),
    "thyroid": (
        "Both thyroid lobes are {size}, with smooth capsule and symmetrical shape. The thyroid parenchyma is {gland} "
        "on both sides. No focal nodule is seen in either lobe.",
        "The thyroid is {size} and symmetrical with a smooth capsule. {Gland} thyroid parenchyma on both sides. "
        "No nodule is seen on the left or right.",
        "Left and right thyroid lobes are {size}; the thyroid parenchyma is {gland}. There is no focal lesion in "
        "either lobe.",
    ),
    "liver": (
        "The liver is {size} with a {edge} contour. {Parenchyma}. The hepatic and portal veins are not dilated. "
        "No focal lesion is seen in the liver.",
        "The liver is {size}, its contour is {edge}. {Parenchyma}. Hepatic vessels run a normal course. "
        "No mass or nodule is seen in the liver.",
        "Liver {size}, contour {edge}. {Parenchyma}. There is no focal lesion.",
    ),
}
GLAND = {
    "breast": (
        "The glandular tissue is {gland} in both breasts with clear layers.",
        "Both breasts show {gland} fibroglandular echotexture.",
        "The skin and ducts are unremarkable; the glandular tissue is {gland}.",
    ),
    "thyroid": (
        "Both thyroid lobes are {size}. The thyroid parenchyma is {gland}.",
        "The thyroid is {size} with a smooth capsule. {Gland} thyroid parenchyma.",
    ),
    "liver": (
        "The liver is {size} with a {edge} contour. {Parenchyma}.",
        "Liver {size}, contour {edge}. {Parenchyma}.",
    ),
}
POSTERIOR = {
    "enhancement": ("posterior acoustic enhancement", "posterior enhancement"),
    "shadow": ("posterior acoustic shadowing", "posterior shadowing"),
    "none": ("no posterior acoustic features", "no posterior features"),
}
MARGIN = {
    "circumscribed": ("circumscribed", "well-defined"),
    "indistinct": ("indistinct", "ill-defined"),
    "spiculated": ("spiculated",),
    "lobulated": ("microlobulated", "lobulated"),
}
ORIENTATION = {
    "parallel": ("parallel to the skin", "wider than tall"),
    "not parallel": ("not parallel to the skin", "taller than wide"),
}
ECHO = {"mixed": "mixed cystic and solid"}
NODES = {"breast": "axillary", "thyroid": "cervical", "liver": "hilar"}


def write_english(truth: Truth, masked: bool, rng: np.random.Generator) -> str:
    """The report. The truth determines its facts; `rng` chooses only words and order."""
    if truth.lesions:
        sentences = [_fill(truth, pick(rng, GLAND[truth.organ]))]
        sentences += _surgery(truth, rng)
        sentences += _main_lesion(truth, masked, rng)
        sentences += [_other_lesion(truth, lesion, masked, rng) for lesion in truth.lesions[1:]]
        tissue = "gland" if truth.organ != "liver" else "liver"
        sentences.append(
            pick(rng, (f"The remaining {tissue} is unremarkable.", f"The rest of the {tissue} shows no abnormality."))
        )
    else:
        sentences = [_fill(truth, stock(rng, NORMAL[truth.organ])), *_surgery(truth, rng)]
    sentences += _unseen(truth, rng)
    if truth.category:
        scale = "BI-RADS" if truth.organ == "breast" else "TI-RADS"
        sentences.append(pick(rng, (f"{scale} category {truth.category}.", f"{scale} {truth.category}.")))
    return " ".join(sentences)


def _fill(truth: Truth, text: str) -> str:
    coarse = truth.gland == "heterogeneous"
    parenchyma = "the parenchyma is coarse and heterogeneous" if coarse else "the parenchyma is homogeneous"
    if truth.steatosis:
        parenchyma += " with increased echogenicity (bright liver) and deep attenuation"
    return text.format(
        gland=truth.gland,
        Gland=truth.gland.capitalize(),
        size="enlarged" if truth.size_gland == "enlarged" else "normal in size",
        edge="nodular" if coarse else "smooth",
        Parenchyma=parenchyma[0].upper() + parenchyma[1:],
    )


def _surgery(truth: Truth, rng: np.random.Generator) -> list[str]:
    if not truth.surgery:
        return []
    what = {"breast": "lumpectomy of the {} breast", "thyroid": "partial resection of the {} thyroid lobe"}
    done = what.get(truth.organ, "partial hepatectomy of the {} lobe").format(truth.surgery)
    return [pick(rng, (f"Status post {done}, with a scar and clips.", f"Postoperative scar with clips after {done}."))]


def _where(truth: Truth, lesion: Lesion, masked: bool) -> str:
    if truth.organ == "liver":
        return f"the {lesion.side} lobe of the liver"
    if truth.organ == "thyroid":
        part = "middle third" if lesion.place == "middle" else lesion.place
        return "the isthmus" if lesion.side is None else f"the {part} of the {lesion.side} lobe"
    if lesion.clock is None:
        return f"the retroareolar region of the {lesion.side} breast"
    hour = "_Loc_" if masked else str(lesion.clock)
    return f"the {lesion.place} quadrant of the {lesion.side} breast at {hour} o'clock"


def _size(lesion: Lesion, masked: bool) -> str:
    return "_2DS_" if masked else "{} x {} mm".format(*lesion.diameters_mm)


def _noun(truth: Truth, lesion: Lesion) -> str:
    if lesion.kind == "cyst":
        return "cyst"
    return {"breast": "mass", "thyroid": "nodule", "liver": "lesion"}[truth.organ]


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _main_lesion(truth: Truth, masked: bool, rng: np.random.Generator) -> list[str]:
    lesion = truth.lesions[0]
    echo, noun, size = ECHO.get(lesion.echogenicity, lesion.echogenicity), _noun(truth, lesion), _size(lesion, masked)
    where = _where(truth, lesion, masked)
    thing = _article(f"{lesion.shape} {echo} {noun}")
    sentences = []
    if len(truth.lesions) > 1:
        many = {"breast": "masses are", "thyroid": "nodules are", "liver": "lesions are"}[truth.organ]
        sentences.append(pick(rng, (f"Multiple {many} seen.", f"Several {many} present.")))
        sentences.append(f"The largest is {thing} in {where}, measuring {size}.")
    else:
        start = thing[0].upper() + thing[1:]
        sentences.append(
            pick(
                rng,
                (
                    f"{start} measuring {size} is seen in {where}.",
                    f"In {where} there is {thing} measuring {size}.",
                    f"{start} is located in {where}, {size}.",
                ),
            )
        )
    sentences.append(_looks(truth, lesion, rng))
    if mentions_calcification(truth, lesion):
        some = ("Punctate calcifications are seen within it.", "It contains microcalcifications.")
        sentences.append(
            pick(rng, some if lesion.calcification else ("No calcification is seen.", "No calcifications."))
        )
    return sentences


def _looks(truth: Truth, lesion: Lesion, rng: np.random.Generator) -> str:
    margin = pick(rng, MARGIN[lesion.margin])
    behind = pick(rng, POSTERIOR[lesion.posterior]) if mentions_posterior(truth, lesion) else ""
    lies = pick(rng, ORIENTATION[lesion.orientation]) if lesion.orientation else ""
    if lies:
        orders = (f"The margin is {margin}, the orientation is {lies}", f"It is {lies} with a {margin} margin")
        if margin[0] in "aeiou":
            orders = (orders[0], f"It is {lies} with an {margin} margin")
        text = pick(rng, orders)
    else:
        text = pick(rng, (f"The margin is {margin}", f"Its margin is {margin}"))
    if behind:
        text += pick(rng, (f", with {behind}", f"; {behind}"))
    return text + "."


def _other_lesion(truth: Truth, lesion: Lesion, masked: bool, rng: np.random.Generator) -> str:
    echo = ECHO.get(lesion.echogenicity, lesion.echogenicity)
    thing, where, size = f"{echo} {_noun(truth, lesion)}", _where(truth, lesion, masked), _size(lesion, masked)
    return pick(rng, (f"Another {thing} of {size} lies in {where}.", f"A further {thing} is seen in {where}, {size}."))


def _unseen(truth: Truth, rng: np.random.Generator) -> list[str]:
    sentences = []
    if truth.mentions_doppler and truth.lesions and truth.lesions[0].doppler:
        sentences.append(
            pick(rng, ("Color Doppler shows internal blood flow.", "Internal vascularity is seen on color Doppler."))
        )
    elif truth.mentions_doppler:
        sentences.append(pick(rng, ("No internal flow on color Doppler.", "No vascularity is seen on color Doppler.")))
    if truth.mentions_nodes:
        region = NODES[truth.organ]
        if truth.lymph_node == "visible":
            sentences.append(f"An enlarged {region} lymph node is seen.")
        else:
            sentences.append(
                pick(rng, (f"No enlarged {region} lymph nodes.", f"No abnormal {region} lymph nodes are seen."))
            )
    return sentences
