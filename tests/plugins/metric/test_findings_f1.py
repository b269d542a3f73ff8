"""What the lexicon reads, sentence by sentence, labelled by hand; and the scores made of it."""

import gc
import itertools
import random
import re
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness import problem
from pairs import pair

from framework.text.findings.expression import Expression, reads_digits, required_words
from framework.text.findings.numbers import agreeing
from framework.text.findings.reader import (
    ANOTHER,
    LEXICON,
    NOTHING,
    SENTENCES,
    SHORT_SIDE,
    Reader,
    _language,
    _readers,
    explain,
    read,
    read_all,
)
from plugins.dataset.phantom import Phantom
from plugins.metric.findings_f1 import FindingsF1

ONE = "lesion=present count=single "
MANY = "lesion=present count=multiple "

ENGLISH = [
    ("The glandular tissue is homogeneous.", "gland=homogeneous"),
    ("Heterogeneous fibroglandular echotexture in both breasts.", "gland=heterogeneous"),
    ("The thyroid is normal in size, the parenchyma is homogeneous.", "size_gland=normal gland=homogeneous"),
    ("The liver is enlarged with a coarse, heterogeneous parenchyma.", "size_gland=enlarged gland=heterogeneous"),
    (
        "The parenchyma is homogeneous with increased echogenicity (bright liver) and deep attenuation.",
        "gland=homogeneous steatosis=present",
    ),
    ("The thyroid is not enlarged.", "size_gland=normal"),
    ("No focal lesion is seen in either breast.", "lesion=absent"),
    ("There is no mass or nodule on the left or right.", "lesion=absent"),
    ("No nodule, cyst, or calcification is seen.", "lesion=absent calcification=absent"),
    ("A focal lesion is not identified.", "lesion=absent"),
    ("The rest of the gland shows no abnormality.", "lesion=absent"),
    ("An oval hypoechoic mass is seen in the left breast.", ONE + "shape=oval echogenicity=hypoechoic side=left"),
    ("A round, anechoic, thin-walled cyst.", ONE + "shape=round echogenicity=anechoic"),
    ("In the upper outer quadrant of the right breast, a mass is seen.", ONE + "place=upper outer side=right"),
    ("There is a nodule at the lower inner quadrant, retroareolar.", ONE + "place=lower inner place=retroareolar"),
    ("A mass in the upper inner quadrant; a 2.5 mm cyst in the lower outer quadrant.",
     MANY + "place=upper inner place=lower outer"),
    ("In the mid portion of the left lobe of the thyroid, an isoechoic nodule is seen.",
     ONE + "place=middle side=left echogenicity=isoechoic"),
    ("A hyperechoic nodule lies in the isthmus.", ONE + "echogenicity=hyperechoic place=isthmus"),
    ("Multiple nodules. The largest is in the upper pole of the right lobe, 1.8 x 0.7 cm.",
     MANY + "place=upper pole side=right"),
    ("A nodule in the left lobe. Another mixed cystic and solid nodule lies in the lower pole of the right lobe.",
     MANY + "side=left side=right place=lower pole echogenicity=mixed"),
    ("Hyperechoic hemangioma in the right lobe of the liver.", ONE + "echogenicity=hyperechoic side=right"),
    ("An irregular mass at central depth, not parallel to the skin.",
     ONE + "shape=irregular place=central depth orientation=not parallel"),
    ("A mass in the superficial tissue. It is wider than tall.", ONE + "place=superficial orientation=parallel"),
    ("A mass at a deep position. The orientation is taller than wide.",
     ONE + "place=deep orientation=not parallel"),
    ("A mass is seen. The margin is well-defined, with posterior acoustic enhancement.",
     ONE + "margin=circumscribed posterior=enhancement"),
    ("The mass is ill-defined with posterior shadowing.", ONE + "margin=indistinct posterior=shadow"),
    ("A mass with spiculated margin; no posterior acoustic features.", ONE + "margin=spiculated posterior=none"),
    ("A microlobulated mass without calcification and with posterior enhancement.",
     ONE + "margin=lobulated calcification=absent posterior=enhancement"),
    ("The nodule has no calcification and circumscribed margins.",
     ONE + "calcification=absent margin=circumscribed"),
    ("The nodule contains punctate echogenic foci.", ONE + "calcification=present"),
    ("A nodule with microcalcifications. Internal vascularity is seen on color Doppler.",
     ONE + "calcification=present doppler=present"),
    ("No internal flow on color Doppler.", "doppler=absent"),
    ("No enlarged axillary lymph nodes.", "lymph_node=not enlarged"),
    ("The cervical lymph nodes are not enlarged.", "lymph_node=not enlarged"),
    ("An enlarged left axillary lymph node is seen.", "lymph_node=visible"),
    ("Status post lumpectomy of the left breast, with a scar.", "surgery=present"),
    ("Postoperative change after partial hepatectomy.", "surgery=present"),
    ("A mass. BI-RADS category 4A.", ONE + "birads=4"),
    ("BI-RADS 2.", "birads=2"),
    ("BI-RADS: 3, BI-RADS category 5.", "birads=3 birads=5"),
    ("TI-RADS 1. TI-RADS category 5.", "tirads=1 tirads=5"),
    ("TI-RADS 2 on the left, ACR TI-RADS 3 and TI-RADS 4.", "tirads=2 tirads=3 tirads=4"),
    ("Impression: BI-RADS category 4, histology malignant (invasive carcinoma).", "birads=4 histology=malignant"),
    ("BI-RADS category 2, benign (fibroadenoma) on histology.", ONE + "birads=2 histology=benign"),
    ("A probably benign mass.", ONE),
    ("The gland is heterogeneous; an oval mass is homogeneous and hypoechoic.",
     ONE + "gland=heterogeneous shape=oval echogenicity=hypoechoic"),
    ("The liver is normal in size, with a round, anechoic cyst.",
     ONE + "size_gland=normal shape=round echogenicity=anechoic"),
    ("No mass in the right breast. A cyst in the left breast.", ONE + "side=left"),
    ("A nodule of regular shape with homogeneous internal echoes.", ONE + "shape=regular inner_echo=homogeneous"),
    ("A cyst with heterogeneous internal echoes.", ONE + "inner_echo=heterogeneous"),
    ("The liver is shrunken. Dilated bile ducts.", "size_gland=reduced duct=dilated"),
    ("Blood flow of the thyroid is normal. Flow in the gland is increased.", "gland_flow=normal gland_flow=increased"),
    ("BI-RADS 0: additional views needed. BI-RADS 1: negative. BI-RADS 6.", "birads=0 birads=1 birads=6"),
    ("The skin is normal.", ""),
]  # fmt: skip

CHINESE = [
    ("双乳腺体回声均匀。", "gland=homogeneous"),
    ("腺体结构紊乱，回声不均匀。", "gland=heterogeneous"),
    ("甲状腺大小正常，实质回声均匀。", "size_gland=normal gland=homogeneous"),
    ("肝脏增大，肝实质回声增粗、不均匀。", "size_gland=enlarged gland=heterogeneous"),
    ("肝实质回声均匀，肝实质回声增强，后方衰减。", "gland=homogeneous steatosis=present"),
    ("肝实质回声细密，后方回声衰减。", "steatosis=present"),
    ("双乳未见明显结节及肿块。", "lesion=absent"),
    ("肝内未见明显占位。", "lesion=absent"),
    ("双乳腺体内未见异常回声。", "lesion=absent"),
    ("左乳外上象限可见一低回声结节，大小约_2DS_。", ONE + "side=left place=外上 echogenicity=hypoechoic"),
    ("右乳内上象限见一无回声区。", ONE + "side=right place=内上 echogenicity=anechoic"),
    ("右侧乳腺外下象限探及等回声肿块。", ONE + "side=right place=外下 echogenicity=isoechoic"),
    ("左侧乳腺内下象限可见强回声团。", ONE + "side=left place=内下 echogenicity=hyperechoic"),
    ("左乳乳晕后方见混合回声团块。", ONE + "side=left place=retroareolar echogenicity=mixed"),
    ("甲状腺右叶上极见囊实性结节。", ONE + "side=right place=upper pole echogenicity=mixed"),
    ("甲状腺左叶中部见一高回声结节。", ONE + "side=left place=middle echogenicity=hyperechoic"),
    ("甲状腺左叶下极可见一结节。", ONE + "side=left place=lower pole"),
    ("峡部见一低回声结节。", ONE + "place=isthmus echogenicity=hypoechoic"),
    ("甲状腺内可见多发结节，较大者位于右叶中部。", MANY + "side=right place=middle"),
    ("左乳见一结节，右乳另见一囊肿。", MANY + "side=left side=right"),
    ("肝右叶可见数个无回声区。", MANY + "side=right echogenicity=anechoic"),
    ("见一结节，呈椭圆形，边界清晰。", ONE + "shape=oval margin=circumscribed"),
    ("见一结节，类圆形，边界欠清。", ONE + "shape=round margin=indistinct"),
    ("见一结节，形态不规则，边缘可见毛刺。", ONE + "shape=irregular margin=spiculated"),
    ("见一结节，形态规则，边缘呈微分叶状。", ONE + "shape=regular margin=lobulated"),
    ("见一结节，形态欠规则，边界模糊，纵横比大于1。",
     ONE + "shape=irregular margin=indistinct orientation=not parallel"),
    ("见一结节，横径大于纵径，边缘光滑。", ONE + "orientation=parallel margin=circumscribed"),
    ("见一结节，与皮肤不平行。", ONE + "orientation=not parallel"),
    ("见一结节，后方回声增强。", ONE + "posterior=enhancement"),
    ("见一结节，后方伴声影，内可见点状强回声。", ONE + "posterior=shadow calcification=present"),
    ("见一结节，后方回声无明显变化，未见明显钙化。", ONE + "posterior=none calcification=absent"),
    ("见一低回声结节，内可见钙化，CDFI：内可见点状血流信号。",
     ONE + "echogenicity=hypoechoic calcification=present doppler=present"),
    ("CDFI：未见明显血流信号。", "doppler=absent"),
    ("双侧腋窝未见明显肿大淋巴结。", "lymph_node=not enlarged"),
    ("双侧颈部淋巴结未见肿大。", "lymph_node=not enlarged"),
    ("左侧颈部可见肿大淋巴结。", "lymph_node=visible"),
    ("左乳术后改变，可见瘢痕。", "surgery=present"),
    ("右叶甲状腺部分切除术后。", "surgery=present"),
    ("BI-RADS 4A类。", "birads=4"),
    ("BI-RADS：3类；BI-RADS 2类；BI-RADS 5类。", "birads=3 birads=2 birads=5"),
    ("TI-RADS 4类。TI-RADS 1类。", "tirads=4 tirads=1"),
    ("TI-RADS 2类，TI-RADS 3类，TI-RADS 5类。", "tirads=2 tirads=3 tirads=5"),
    ("病理：良性。", "histology=benign"),
    ("术后病理提示恶性。", "histology=malignant surgery=present"),
    ("右乳未见明显结节。左乳见一结节，浅层。", ONE + "side=left place=superficial"),
    ("左乳见一结节，余腺体回声均匀，未见异常回声。", ONE + "side=left gland=homogeneous"),
    ("见一结节，内部回声均匀。见一囊肿，内部回声不均匀。",
     ONE + "inner_echo=homogeneous inner_echo=heterogeneous"),
    ("肝脏体积缩小，胆总管扩张。", "size_gland=reduced duct=dilated"),
    ("甲状腺血流信号正常。腺体内血流丰富。", "gland_flow=normal gland_flow=increased"),
    ("BI-RADS 0类。BI—RADS：Ⅰ类；ＢＩ－ＲＡＤＳ　６类。", "birads=0 birads=1 birads=6"),
    ("乳腺皮肤及皮下脂肪层清晰。", ""),
]  # fmt: skip
QUADRANTS = {"外上": "upper outer", "内上": "upper inner", "外下": "lower outer", "内下": "lower inner"}


def labels(line: str) -> set[tuple[str, str]]:
    """`margin=circumscribed place=upper outer` as a set."""
    found: list[list[str]] = []
    for word in line.split():
        if "=" in word:
            found.append(word.split("="))
        else:
            found[-1][1] += f" {word}"
    return {(attribute, QUADRANTS.get(value, value)) for attribute, value in found}


# The labels of findings_sentences.yaml, other than diameters, hours and segments.
LABELS = {
    **{name: ("echogenicity", name) for name in ("hypoechoic", "anechoic", "isoechoic", "hyperechoic", "mixed")},
    **{f"{a} {b}": ("place", f"{a} {b}") for a in ("upper", "lower") for b in ("outer", "inner", "pole")},
    **{name: ("place", name) for name in ("middle", "isthmus", "retroareolar", "superficial", "deep")},
    **{
        name: ("segment", name)
        for name in ("left lateral", "left medial", "right anterior", "right posterior", "caudate")
    },
    **{name: ("shape", name) for name in ("regular", "irregular", "oval", "round")},
    **{name: ("margin", name) for name in ("circumscribed", "indistinct", "spiculated", "lobulated")},
    **{f"{name} {number}": (name, str(number)) for name in ("birads", "tirads") for number in range(7)},
    **{name: ("histology", name) for name in ("benign", "malignant")},
    **{name: ("orientation", name) for name in ("parallel", "not parallel")},
    **{name: ("posterior", name) for name in ("enhancement", "shadow")},
    **{
        f"{words} {value}": (attribute, value)
        for words, attribute, values in (
            ("gland", "gland", ("homogeneous", "heterogeneous")),
            ("size", "size_gland", ("normal", "enlarged", "reduced")),
            ("inner", "inner_echo", ("homogeneous", "heterogeneous")),
            ("gland flow", "gland_flow", ("normal", "increased")),
            ("posterior", "posterior", ("none",)),
        )
        for value in values
    },
    "ducts": ("duct", "dilated"),
    "steatosis": ("steatosis", "present"),
    "surgery": ("surgery", "present"),
    "none": ("lesion", "absent"),
    "one": ("count", "single"),
    "many": ("count", "multiple"),
    "calcification": ("calcification", "present"),
    "no calcification": ("calcification", "absent"),
    "flow": ("doppler", "present"),
    "no flow": ("doppler", "absent"),
    "nodes": ("lymph_node", "visible"),
    "no nodes": ("lymph_node", "not enlarged"),
    "_Loc_": ("clock", "_loc_"),
}
# Recall and precision of each label on the 200 sentences of findings_sentences.yaml. The lexicon was corrected on them,
# and the same person wrote both, so other texts are read less accurately. Before the corrections, recall was 0.72
# (lymph nodes) to 1.00 and precision 0.82 (Doppler) to 1.00.
#
# On the 100 sentences of findings_real.yaml precision and recall were 0.76 and 0.82 at first (30 held back: 0.77 and
# 0.80). The same person wrote these sentences too, and the reports of findings_fresh.yaml.
REACHED = {
    "lesion": (0.99, 0.99),
    "count": (0.98, 0.98),
    "side": (0.99, 0.99),
    "size": (0.98, 0.99),
    "place": (1.00, 1.00),
    "clock": (1.00, 1.00),
    "segment": (1.00, 1.00),
    "echogenicity": (0.99, 1.00),
    "calcification": (1.00, 1.00),
    "doppler": (0.95, 1.00),
    "lymph_node": (1.00, 1.00),
    "denial": (0.97, 1.00),
    "side_of": (0.99, 0.98),
}
DENIED = {"none": "lesion", "no calcification": "calcification", "no flow": "doppler", "no nodes": "lymph_node"}


def labelled(line: str) -> set[tuple[str, str]]:
    """`one / left: hypoechoic, 12x8` as a set."""
    found = set()
    for part in filter(None, line.split(" / ")):
        side, _, rest = part.rpartition(":")
        found |= {("side", side)} if side else set()
        for word in filter(None, map(str.strip, rest.split(","))):
            if re.fullmatch(r"[\d.]+(?:x[\d.]+)*|_[23]DS_|_S[CM]M_", word):
                finding = "size", _diameters(word)
            elif re.fullmatch(r"\d+h", word):
                finding = "clock", word[:-1]
            else:
                finding = LABELS.get(word, ("segment", word))
            found.add(finding)
            found |= {("denial", DENIED[word])} if word in DENIED else set()
            found |= {("side_of", f"{side} {' '.join(finding)}")} if side else set()
            found |= {("lesion", "present")} if word in ("one", "many") else set()
    return found


def _diameters(word: str) -> str:
    return word if "_" in word else "x".join(f"{mm:g}" for mm in sorted(map(float, word.split("x")), reverse=True))


def stated(text: str) -> set[tuple[str, str]]:
    """The findings of a sentence by the metric, limited to labelled aspects."""
    reading = read_all(text)
    found = set(reading.findings | reading.aspects)
    for side, size in reading.sizes:
        shown = (
            size.replace("ds", "DS").replace("scm", "SCM")
            if isinstance(size, str)
            else "x".join(f"{mm:g}" for mm in size)
        )
        found |= {("size", shown)} | ({("side_of", f"{side} size {shown}")} if side else set())
    kept = "echogenicity", "place", "clock", "segment", "size", "calcification"
    return {(a, value) for a, value in found if a != "side_of" or value.split()[1] in kept}


@cache
def sentences(name: str = "findings_sentences.yaml") -> dict[str, list[tuple[str, ...]]]:
    path = Path(__file__).with_name(name)
    return {name: [tuple(row) for row in rows] for name, rows in yaml.safe_load(path.read_text("utf-8")).items()}


def written() -> list[tuple[str, ...]]:
    """The 200 sentences of which the scores are predicted."""
    return [*sentences()["en"], *sentences()["zh"]]


def difference(text: str, line: str, every: bool = False) -> str:
    predicted, true = stated(text), labelled(line)
    if not every:
        predicted = {finding for finding in predicted if finding[0] in REACHED}
    if predicted == true:
        return ""
    return f"missed: {sorted(true - predicted)}; wrong: {sorted(predicted - true)}"


def test_there_are_a_hundred_labelled_sentences_of_each_language():
    assert [len({text for text, *_ in sentences()[language]}) for language in ("en", "zh")] == [100, 100]


def test_each_labelled_sentence_is_read_as_labelled_or_is_a_known_miss():
    rows = [(*row[:2], False, *row[2:]) for rows in sentences().values() for row in rows]
    for name in ("findings_real.yaml", "findings_fresh.yaml"):
        rows += [(*row[:2], True, *row[2:]) for rows in sentences(name).values() for row in rows]
    wrong = [
        f"{text}\n    {found}"
        for text, line, every, *why in rows
        if (found := difference(text, line, every)) and not why
    ]
    fixed = [text for text, line, every, *why in rows if why and not difference(text, line, every)]
    assert not wrong, "\n".join(wrong)
    assert not fixed, "read correctly now: remove the third text\n" + "\n".join(fixed)


def counted(rows: Iterable[tuple[str, ...]]) -> dict[str, Counter[str]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, line, *_ in rows:
        predicted, true = stated(text), labelled(line)
        for name, found in (("both", predicted & true), ("predicted", predicted), ("true", true)):
            for attribute, _ in found:
                counts[attribute][name] += 1
    return counts


def reached() -> dict[str, tuple[float, float]]:
    counts = counted(written())
    return {
        name: (counts[name]["both"] / counts[name]["true"], counts[name]["both"] / counts[name]["predicted"])
        for name in REACHED
    }


def test_sentences_as_in_real_reports_are_read_with_precision_and_recall_of_97_percent():
    rows = sentences("findings_real.yaml")
    assert [len(rows[name]) for name in ("tuned_on", "held_back")] == [70, 30]
    for some, least in ((rows["tuned_on"], 0.97), (rows["held_back"], 0.97)):
        counts = counted(some)
        total = sum(counts.values(), Counter())
        assert total["both"] >= least * max(total["predicted"], total["true"])
    for name, each in counted([*rows["tuned_on"], *rows["held_back"]]).items():
        assert each["both"] >= 0.9 * max(each["predicted"], each["true"]), name


@pytest.mark.parametrize(
    ("name", "reports"), [("set_a", 100), ("set_b", 60), ("set_c", 40), ("set_d", 54), ("set_e", 40), ("set_f", 30)]
)
def test_fresh_reports_are_read_with_precision_and_recall_of_97_percent(name: str, reports: int) -> None:
    rows = sentences("findings_fresh.yaml")[name]
    assert len({text for text, *_ in rows}) == reports
    counts = counted(rows)
    total = sum(counts.values(), Counter())
    assert total["both"] >= 0.97 * max(total["predicted"], total["true"])
    for attribute, each in counts.items():
        assert each["both"] >= 0.9 * max(each["predicted"], each["true"]), attribute


def test_the_indication_is_no_finding():
    assert read("Indication: palpable mass of 1.5 cm. Findings: No mass.") == labels("lesion=absent")
    assert read("临床诊断：左乳结节。双乳未见占位。") == labels("lesion=absent")


def test_a_lesion_of_another_organ_is_none():
    assert read("No liver lesion. Right kidney: 2 cm simple cyst.") == labels("lesion=absent")
    assert read("肝内未见占位。胆囊壁见一高回声团，大小约0.4×0.3cm。") == labels("lesion=absent")


def test_another_lesion_is_one_more_only_beside_a_first():
    assert ("count", "single") in read("肝回声均匀，右叶内另见一低回声区。")
    assert ("count", "multiple") in read("肝右叶见一囊肿，另见一低回声区。")


def test_sizes_of_two_named_sides_are_theirs_in_order():
    reading = read_all("右乳10点、左乳2点分别见无回声区，大小5×4mm、7×5mm。")
    assert reading.sizes == {("right", (5.0, 4.0)), ("left", (7.0, 5.0))}


def test_a_lesion_below_the_line_of_a_lobe_is_on_its_side():
    text = "Right lobe: 4.6 x 1.4 x 1.5 cm. Multiple nodules, the largest 1.2 cm. Left lobe: 4.4 x 1.3 cm. No nodule."
    assert read(text) == labels(MANY + "side=right")
    assert read_all(text).sizes == {("right", (12.0,))}


def test_a_text_is_explained_by_the_words_that_state_each_finding():
    assert explain("左乳见一低回声结节，距乳头2cm，大小约8×5mm。双侧腋下见一结节。") == [
        ("side: left", "左乳"),
        ("lesion: present", "一低回声结节"),
        ("echogenicity: hypoechoic", "低回声"),
        ("size: 8 x 5 mm", "8×5mm"),
        ("lymph_node: visible", "淋巴结"),
        ("count: single", ""),
    ]
    assert FindingsF1.explain("No mass.") == [("lesion: absent", "mass")]


def test_recall_and_precision_of_each_aspect_on_the_labelled_sentences_are_as_stated():
    found = reached()
    for name, expected in REACHED.items():
        assert found[name] == pytest.approx(expected, abs=0.0051), f"{name}: recall, precision"


@pytest.mark.parametrize("side", ["Lt", "Lt.", "LT", "L", "L.", "L-sided", "leftmost", "lefthand", "left-hand"])
def test_an_abbreviated_side_equals_the_full_word(side: str) -> None:
    for form, word, other in ((side, "left", "right"), (_mirrored(side), "right", "left")):
        predicted = f"A hypoechoic mass is seen in the {form} breast, 5 mm."
        assert ("side", word) in read(predicted) and ("side", other) not in read(predicted)
        assert scored(predicted, f"A hypoechoic mass is seen in the {word} breast, 5 mm.")["side_of"] == 1


def _mirrored(side: str) -> str:
    return side.replace("left", "right") if side.startswith("left") else side.replace("L", "R", 1)


@pytest.mark.parametrize(("initials", "place"), [("UO", "upper outer"), ("UI", "upper inner"), ("LO", "lower outer"),
                                                 ("LI", "lower inner")])  # fmt: skip
def test_an_abbreviated_quadrant_is_a_side_and_a_position(initials: str, place: str) -> None:
    for side, word in (("L", "left"), ("R", "right")):
        predicted = read(f"A hypoechoic mass in the {side}{initials}Q, 5 mm.")
        assert predicted == read(f"A hypoechoic mass in the {place} quadrant of the {word} breast, 5 mm.")


@pytest.mark.parametrize(("text", "line"), ENGLISH + CHINESE, ids=[text[:40] for text, _ in ENGLISH + CHINESE])
def test_a_sentence_is_read_as_labelled(text, line):
    assert read(text) == labels(line)


@pytest.mark.parametrize("cases", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_the_labelled_sentences_cover_every_value_of_the_lexicon(cases):
    seen = {finding for _, line in cases for finding in labels(line)}
    lexicon = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))["attributes"]
    every = {
        (attribute, value)
        for attribute, entry in lexicon.items()
        if attribute != "segment"  # of the sentences of findings_sentences.yaml
        for values in entry["values"]
        for value in values.split(" + ")
        if value not in (NOTHING, ANOTHER)
    }
    # The depths of BUS-BRA and the orientation words are written in English only.
    only_english = {("place", "central depth"), ("place", "deep")}
    assert every - seen <= (only_english if cases is CHINESE else set())


def test_words_about_the_gland_do_not_describe_the_lesion():
    text = "The thyroid is enlarged, the parenchyma is heterogeneous. No nodule is seen. No enlarged lymph nodes."
    assert read(text) == labels("size_gland=enlarged gland=heterogeneous lesion=absent lymph_node=not enlarged")


def test_decimals_do_not_end_a_sentence():
    whole = "A 1.8 x 0.7 cm nodule in the left lobe, hypoechoic."
    assert read(whole) == labels(ONE + "side=left echogenicity=hypoechoic")


def test_a_long_text_without_ends_is_read_in_bounded_time():
    started = time.process_time()
    read("no mass, " * 2000)
    read("oval-" * 20000 + "mass")
    read("结节" * 10000)
    read("1 mm " * 20000)
    read("大小1mm" * 5000)
    assert time.process_time() - started < 4


def test_a_paraphrased_report_scores_1():
    reference = "An oval hypoechoic mass is seen in the left breast. The margin is circumscribed. No calcification."
    reworded = "Left breast: a hypoechoic mass, oval, well-defined, without calcifications."
    scores = FindingsF1()([pair(0, reworded, reference)])
    assert scores["findings_f1"] == scores["findings_precision"] == scores["findings_recall"] == 1


def test_scores_are_counted_over_the_split():
    pairs = [
        pair(0, "An oval mass in the left breast.", "A round mass in the left breast."),  # 3 of 4 agree
        pair(1, "No mass.", "An oval mass. BI-RADS 3."),  # 0 of 1 predicted, of 4 true
    ]
    scores = FindingsF1()(pairs)
    assert scores["findings_precision"] == pytest.approx(3 / 5)
    assert scores["findings_recall"] == pytest.approx(3 / 8)
    assert scores["findings_f1"] == pytest.approx(2 * 3 / (5 + 8))
    assert scores["findings_f1/side"] == 1 and scores["findings_f1/shape"] == 0 and scores["findings_f1/birads"] == 0
    assert "findings_f1/margin" not in scores


def test_english_and_chinese_of_one_truth_agree():
    english = "An oval hypoechoic mass is seen in the upper outer quadrant of the left breast. No calcification."
    chinese = "左乳外上象限可见一低回声肿块，呈椭圆形，未见钙化。"
    assert read(english) == read(chinese) != frozenset()


def test_no_pairs_are_refused():
    with problem("empty-split"):
        FindingsF1()([])


def test_a_score_of_0_gives_a_warning():
    reference = "An oval mass in the left breast."
    with pytest.warns(UserWarning, match="1 of 1 predictions are empty"):
        assert FindingsF1()([pair(0, "", reference)])["findings_f1"] == 0
    # word for word
    with pytest.warns(UserWarning, match="no finding in any of 1 references"):
        FindingsF1()([pair(0, "a dog", "a cat")])
    with pytest.warns(UserWarning, match="no finding in any of 1 predictions"):
        FindingsF1()([pair(0, "a dog", reference)])
    with pytest.warns(UserWarning, match="no finding in 1 of 2 references"):
        FindingsF1()([pair(0, "a cat", "a cat"), pair(1, reference, reference)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FindingsF1()([pair(0, reference, reference)])


def test_an_invalid_expression_in_the_lexicon_names_its_place():
    lexicon = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    lexicon["attributes"]["side"]["values"]["left"]["en"] = ["(left"]
    with pytest.raises(ValueError, match=r"lexicon\.yaml: side/en"):
        Reader("en", lexicon)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"\bnodules?\b|mass(?:es)?", {"nodule", "mass"}),
        (r"(?<!no )lymph ?nodes?", {"lymphnode", "lymph node"}),
        (
            r"(?:hypo|hyper)echoic (?:mass|area)",
            {"hypoechoic mass", "hypoechoic area", "hyperechoic mass", "hyperechoic area"},
        ),
        (r"[低高]回声", {"低回声", "高回声"}),
        (r"\w+echoic|[0-9]{2}", set()),
        (r"(?:a|b?)", set()),
    ],
)
def test_every_match_of_an_expression_has_one_of_its_words(text: str, words: set[str]):
    assert required_words(text) == words


def test_expressions_of_the_lexicon_match_as_without_their_words():
    texts = {text.lower() for text, _ in [*ENGLISH, *CHINESE]}
    texts |= {part for text in texts for part in re.split("[,，。]", text)}
    for reader in _readers().values():
        rules = itertools.chain.from_iterable((rule.stated, rule.by_denial) for rule in reader._rules)
        every = [*rules, *vars(reader).values(), *reader._topics.values()]
        for expression in (each for each in every if isinstance(each, Expression)):
            plain = re.compile(expression.text)
            for text in texts:
                expected = [(match.span(), match.lastgroup) for match in plain.finditer(text)]
                assert [(match.span(), match.lastgroup) for match in expression.finditer(text)] == expected
                assert expression.begins(text) == (plain.match(text) is not None)
                assert expression.replace(text, "#") == plain.sub("#", text)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        (r"\d+ mm", False),
        (r"a{0,20}[0-9]?", False),
        (r"[^\d]x", False),
        ("3", True),
        ("[2-9]", True),
        ("[^3]", True),
        ("x(?<!1)", True),
        (r"(?:a|b(?=c2))", True),
        (r"(\d)\1", True),
    ],
)
def test_an_expression_reads_digits_if_a_match_depends_on_which_they_are(text: str, reads: bool) -> None:
    assert reads_digits(text) is reads


def test_clauses_that_differ_in_digits_are_read_as_without_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    files = sorted(Path(__file__).parent.glob("findings_*.yaml"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if re.search(r"\d", line)]
    lexicon = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    with_zeros = {"en": Reader("en", lexicon), "zh": Reader("zh", lexicon)}
    monkeypatch.setattr(Reader, "_with_zeros", lambda self, clause: clause)
    plain = {"en": Reader("en", lexicon), "zh": Reader("zh", lexicon)}
    for text in lines + [re.sub(r"\d", lambda _: str(draw.randrange(10)), line) for line in lines]:
        language = _language(text)
        assert with_zeros[language].statements(text) == plain[language].statements(text)
        assert with_zeros[language].read(text) == plain[language].read(text)


def test_a_point_ends_a_sentence_as_by_the_plain_expressions() -> None:
    plain = {"en": rf"[!?;\n]|\.(?!\d){SHORT_SIDE}", "zh": r"[。；！？;!?\n]|\.(?!\d)"}
    texts = [
        "Rt. lobe is 1.2 cm. L. breast?! a.b",
        "左叶1.2cm. 右叶；见结节。",
        "...",
        ".5\n.",
        *(t for t, _ in ENGLISH + CHINESE),
    ]
    for language, expression in plain.items():
        assert [SENTENCES[language].split(t.lower()) for t in texts] == [re.split(expression, t.lower()) for t in texts]


def test_scoring_leaves_the_collection_of_garbage_as_it_was() -> None:
    assert gc.isenabled()
    FindingsF1()([pair(0, "a cyst in the left breast", "a cyst in the right breast")])
    assert gc.isenabled()


def test_a_sentence_is_remembered_in_its_context():
    reports = [f"{one} {two}" for (one, _), (two, _) in itertools.product(ENGLISH[::4], ENGLISH[::5])]
    found = [read_all(report) for report in reports]
    for report, reading in list(zip(reports, found))[::20]:
        _readers.cache_clear()
        read_all.cache_clear()
        assert read_all(report) == reading


def test_a_report_is_read_in_about_a_millisecond():
    report = " ".join(text for text, _ in ENGLISH[:8])
    read(report)
    started = time.process_time()
    for number in range(100):  # a number makes each one new to the cache of whole texts
        read(f"{report} Exam {number}.")
    assert (time.process_time() - started) / 100 < 0.002


def scored(prediction: str, reference: str) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name.split("/")[-1]: value for name, value in FindingsF1()([pair(0, prediction, reference)]).items()}


TWO = "An anechoic cyst of 5 mm in the left breast. A hypoechoic mass of 12 x 8 mm in the right breast at 2 o'clock."


@pytest.mark.parametrize(
    ("wrong", "aspect"),
    [
        (TWO.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right"), "side_of"),
        (TWO.replace("12 x 8", "18 x 8"), "size"),
        (TWO.replace("2 o'clock", "10 o'clock"), "clock"),
    ],
)
def test_an_error_lowers_its_aspect_and_not_the_overall_value(wrong: str, aspect: str) -> None:
    right, found = scored(TWO, TWO), scored(wrong, TWO)
    assert right[aspect] == 1 and found[aspect] < 1
    assert found["findings_f1"] == right["findings_f1"] == 1
    assert [name for name in ("size", "clock") if found[name] < 1] == [aspect] * (aspect != "side_of")


def test_a_missing_or_invented_negation_lowers_the_score() -> None:
    reference = "A mass in the left breast, without calcification. No enlarged axillary lymph nodes."
    assert scored("A mass in the left breast, with calcification.", reference)["denial"] == 0
    half = scored(
        "A mass in the left breast, without calcification. An enlarged axillary lymph node is seen.", reference
    )
    assert half["denial"] == pytest.approx(2 / 3)


def test_sizes_agree_within_a_fifth_or_two_millimetres() -> None:
    agree = [
        ("12 x 8 mm", "1.2 x 0.8 cm"),
        ("12 mm", "14 mm"),
        ("40 x 30 mm", "34 x 30 mm"),
        ("12 mm", "12 x 8 mm"),
    ]
    differ = [("12 mm", "15 mm"), ("40 mm", "33 mm"), ("12 x 8 mm", "12 x 12 mm"), ("_2DS_", "12 x 8 mm")]
    for expected, cases in ((1, agree), (0, differ)):
        for predicted, true in cases:
            assert scored(f"A mass, {predicted}.", f"A mass, {true}.")["size"] == expected, (predicted, true)


def test_a_masked_size_agrees_only_with_a_masked_size() -> None:
    assert scored("右乳见一结节，大小约_2DS_。", "右乳见一结节，大小约_2DS_。")["size"] == 1
    assert scored("右乳见一结节，大小约_2DS_。", "右乳见一结节，大小约_3DS_。")["size"] == 0


def test_sizes_are_matched_optimally() -> None:
    draw = np.random.default_rng(4)
    for _ in range(60):
        predicted, true = (
            [
                tuple(sorted(draw.integers(3, 30, draw.integers(1, 4)).tolist(), reverse=True))
                for _ in range(draw.integers(0, 5))
            ]
            for _ in range(2)
        )
        shorter, longer = sorted((predicted, true), key=len)
        best = max(
            sum(
                all(abs(a - b) <= max(2, 0.2 * min(a, b)) for a, b in zip(one, other))
                for one, other in zip(shorter, order)
            )
            for order in itertools.permutations(longer, len(shorter))
        )
        assert agreeing(predicted, true) == best


@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_a_paraphrased_phantom_report_scores_1_in_all_aspects(organ: str) -> None:
    for language in ("en", "zh"):
        exams = list(Phantom(organ=organ, language=language, exams=40, val_exams=1, test_exams=1).splits()["train"])
        pairs = [pair(number, str(exam.rewording), exam.report) for number, exam in enumerate(exams)]
        scores = FindingsF1()(pairs)
        assert set(scores.values()) == {1.0}
        aspects = {"size", "denial", "side_of", *(["clock"] if organ == "breast" else [])}
        assert {f"findings_f1/{name}" for name in aspects} <= scores.keys()
        others = FindingsF1()([pair(0, a.reference, b.reference) for a, b in itertools.pairwise(pairs)])
        assert all(others[f"findings_f1/{name}"] < 0.8 for name in aspects)
