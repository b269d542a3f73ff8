"""Writes the findings in Chinese, in the terms and the order of clinical reports."""

from __future__ import annotations

import numpy as np

from .truth import Lesion, Truth
from .wording import mentions_calcification, mentions_posterior, pick, stock

NORMAL = {
    "breast": (
        "双侧乳腺皮肤及皮下脂肪层清晰，腺体层次清楚，{gland}，导管未见扩张。双乳内未见明显结节及肿块。",
        "双乳腺体层次清晰，{gland}，左右两侧对称。双乳未见明显占位。",
        "左乳及右乳皮下脂肪层清晰，{gland}，未见明显结节。",
    ),
    "thyroid": (
        "甲状腺双侧叶{size}，形态对称，包膜光整，{gland}。双侧叶内未见明显结节。",
        "甲状腺左右叶{size}，包膜完整，{gland}，未见明显占位。",
        "甲状腺{size}，{gland}。左叶及右叶未见明显结节。",
    ),
    "liver": (
        "肝脏{size}，包膜{edge}，{gland}，门静脉及肝静脉走行清晰。肝内未见明显占位。",
        "肝{size}，表面{edge}，{gland}，肝内管道结构清晰，未见明显结节。",
        "肝脏{size}，包膜{edge}。{gland}。肝内未见明显占位。",
    ),
}
GLAND = {
    "breast": (
        "双侧乳腺皮肤及皮下脂肪层清晰，腺体层次清楚，{gland}。",
        "双乳腺体层次清晰，{gland}。",
        "双侧乳腺{gland}，导管未见扩张。",
    ),
    "thyroid": ("甲状腺双侧叶{size}，包膜光整，{gland}。", "甲状腺{size}，{gland}。"),
    "liver": ("肝脏{size}，包膜{edge}，{gland}。", "肝{size}，表面{edge}，{gland}。"),
}
SIDE = {"left": "左", "right": "右"}
PLACE = {
    "upper outer": "外上象限",
    "upper inner": "内上象限",
    "lower outer": "外下象限",
    "lower inner": "内下象限",
    "retroareolar": "乳晕后方",
    "upper pole": "上极",
    "middle": "中部",
    "lower pole": "下极",
}
ECHO = {
    "anechoic": ("无回声",),
    "hypoechoic": ("低回声",),
    "isoechoic": ("等回声",),
    "hyperechoic": ("高回声", "强回声"),
    "mixed": ("混合回声", "囊实性"),
}
SHAPE = {
    "oval": ("呈椭圆形", "椭圆形"),
    "round": ("呈类圆形", "圆形"),
    "irregular": ("形态不规则", "形态欠规则"),
}
MARGIN = {
    "circumscribed": ("边界清晰", "边界清楚", "边缘光滑"),
    "indistinct": ("边界不清", "边界欠清", "边界模糊"),
    "spiculated": ("边缘可见毛刺", "边缘呈毛刺状"),
    "lobulated": ("边缘呈微分叶状", "边缘呈分叶状"),
}
ORIENTATION = {"parallel": ("纵横比小于1", "横径大于纵径"), "not parallel": ("纵横比大于1",)}
POSTERIOR = {
    "enhancement": ("后方回声增强",),
    "shadow": ("后方回声衰减", "后方声影"),
    "none": ("后方回声无改变", "后方回声无明显变化"),
}
NODES = {"breast": "双侧腋窝", "thyroid": "双侧颈部", "liver": "肝门部"}


def write_chinese(truth: Truth, masked: bool, rng: np.random.Generator) -> str:
    """The report. The truth determines its facts; `rng` chooses only words and order."""
    if truth.lesions:
        sentences = [_fill(truth, pick(rng, GLAND[truth.organ]))]
        sentences += _surgery(truth, rng)
        sentences += _main_lesion(truth, masked, rng)
        sentences += [_other_lesion(truth, lesion, masked, rng) for lesion in truth.lesions[1:]]
        rest = {"breast": "余腺体", "thyroid": "余甲状腺", "liver": "余肝"}[truth.organ]
        sentences.append(pick(rng, (f"{rest}未见明显异常。", f"{rest}部分未见异常。")))
    else:
        sentences = [_fill(truth, stock(rng, NORMAL[truth.organ])), *_surgery(truth, rng)]
    sentences += _unseen(truth, rng)
    if truth.category:
        scale = "BI-RADS" if truth.organ == "breast" else "TI-RADS"
        sentences.append(f"{scale} {truth.category}类。")
    return "".join(sentences)


def _fill(truth: Truth, text: str) -> str:
    uneven = truth.gland == "heterogeneous"
    gland = {"breast": "腺体回声", "thyroid": "实质回声", "liver": "肝实质回声"}[truth.organ]
    if truth.organ == "liver":
        gland += "增粗、不均匀" if uneven else "均匀"
        gland += "，肝实质回声增强，后方衰减" if truth.steatosis else ""
    else:
        gland += "不均匀" if uneven else "均匀"
    size = "增大" if truth.size_gland == "enlarged" else "大小正常"
    return text.format(gland=gland, size=size, edge="欠光整" if uneven else "光整")


def _surgery(truth: Truth, rng: np.random.Generator) -> list[str]:
    if not truth.surgery:
        return []
    organ = {"breast": "乳", "thyroid": "叶甲状腺", "liver": "肝"}[truth.organ]
    part = SIDE[truth.surgery] + organ
    return [pick(rng, (f"{part}部分切除术后，局部见瘢痕及金属夹。", f"{part}术后改变，可见瘢痕及金属夹。"))]


def _where(truth: Truth, lesion: Lesion, masked: bool) -> str:
    if lesion.side is None:
        return "甲状腺峡部"
    side = SIDE[lesion.side]
    if truth.organ == "liver":
        return f"肝{side}叶"
    if truth.organ == "thyroid":
        return f"甲状腺{side}叶{PLACE[str(lesion.place)]}"
    hour = "" if lesion.clock is None else "_Loc_" if masked else f"{lesion.clock}点钟方向"
    return f"{side}乳{PLACE[str(lesion.place)]}{hour}"


def _size(lesion: Lesion, masked: bool) -> str:
    longer, shorter = lesion.diameters_mm
    return "大小约_2DS_" if masked else f"大小约{longer / 10:.1f}×{shorter / 10:.1f}cm"


def _thing(truth: Truth, lesion: Lesion, rng: np.random.Generator) -> str:
    noun = {"breast": ("结节", "肿块"), "thyroid": ("结节",), "liver": ("结节",)}[truth.organ]
    if lesion.kind == "cyst":
        noun = ("囊肿", "区") if truth.organ == "liver" else ("结节", "区")
    return pick(rng, ECHO[lesion.echogenicity]) + pick(rng, noun)


def _main_lesion(truth: Truth, masked: bool, rng: np.random.Generator) -> list[str]:
    lesion = truth.lesions[0]
    where, thing, size = _where(truth, lesion, masked), _thing(truth, lesion, rng), _size(lesion, masked)
    if len(truth.lesions) > 1:
        organ = {"breast": "双乳", "thyroid": "甲状腺", "liver": "肝"}[truth.organ]
        if truth.organ == "breast" and len({other.side for other in truth.lesions}) == 1:
            organ = f"{SIDE[str(lesion.side)]}乳"
        start = pick(rng, (f"{organ}内可见多发结节，较大者位于", f"{organ}内可见多个结节，较大者位于"))
        text = f"{start}{where}，为{thing}，{size}"
    else:
        text = pick(rng, (f"{where}可见一{thing}，{size}", f"{where}探及{thing}，{size}"))
    shape, margin = pick(rng, SHAPE[lesion.shape]), pick(rng, MARGIN[lesion.margin])
    looks = [pick(rng, (f"{shape}，{margin}", f"{margin}，{shape}"))]
    if lesion.orientation:
        looks.append(pick(rng, ORIENTATION[lesion.orientation]))
    if mentions_posterior(truth, lesion):
        looks.append(pick(rng, POSTERIOR[lesion.posterior]))
    if mentions_calcification(truth, lesion):
        some = ("内可见点状强回声", "内可见钙化")
        looks.append(pick(rng, some if lesion.calcification else ("内未见明显钙化", "未见钙化")))
    return [f"{text}，{'，'.join(looks)}。"]


def _other_lesion(truth: Truth, lesion: Lesion, masked: bool, rng: np.random.Generator) -> str:
    where, thing, size = _where(truth, lesion, masked), _thing(truth, lesion, rng), _size(lesion, masked)
    return pick(rng, (f"另于{where}可见{thing}，{size}。", f"{where}另见一{thing}，{size}。"))


def _unseen(truth: Truth, rng: np.random.Generator) -> list[str]:
    sentences = []
    if truth.mentions_doppler and truth.lesions and truth.lesions[0].doppler:
        sentences.append(pick(rng, ("CDFI：结节内可见点状血流信号。", "CDFI：内可见血流信号。")))
    elif truth.mentions_doppler:
        sentences.append("CDFI：结节内未见明显血流信号。" if truth.lesions else "CDFI：未见明显血流信号。")
    if truth.mentions_nodes:
        region = NODES[truth.organ]
        if truth.lymph_node == "visible":
            sentences.append(f"{region}可见肿大淋巴结。")
        else:
            sentences.append(pick(rng, (f"{region}未见明显肿大淋巴结。", f"{region}未见肿大淋巴结。")))
    return sentences
