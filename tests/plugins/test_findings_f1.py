"""What the lexicon reads, sentence by sentence, labelled by hand; and the scores made of it."""

import time
import warnings

import pytest
import yaml

from framework.exam import Pair
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.findings_f1.reader import LEXICON, Reader, read

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
    ("No nodule, cyst, or calcification is seen.", "lesion=absent"),
    ("A focal lesion is not identified.", "lesion=absent"),
    ("The rest of the gland shows no abnormality.", "lesion=absent"),
    ("An oval hypoechoic mass is seen in the left breast.", ONE + "shape=oval echogenicity=hypoechoic side=left"),
    ("A round, anechoic, thin-walled cyst.", ONE + "shape=round echogenicity=anechoic"),
    ("In the upper outer quadrant of the right breast, a mass is seen.", ONE + "place=upper outer side=right"),
    ("There is a nodule at the lower inner quadrant, retroareolar.", ONE + "place=lower inner place=retroareolar"),
    ("A mass in the upper inner quadrant; a 2.5 mm cyst in the lower outer quadrant.",
     ONE + "place=upper inner place=lower outer"),
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
    ("见一结节，形态规则，边缘呈微分叶状。", ONE + "margin=lobulated"),
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


def pair(exam_id: int, prediction: str, reference: str) -> Pair:
    return Pair(str(exam_id), prediction, reference, (), ())


@pytest.mark.parametrize(("text", "line"), ENGLISH + CHINESE, ids=[text[:40] for text, _ in ENGLISH + CHINESE])
def test_a_sentence_states_what_a_person_reads_in_it(text, line):
    assert read(text) == labels(line)


@pytest.mark.parametrize("cases", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_the_labelled_sentences_cover_every_value_of_the_lexicon(cases):
    seen = {finding for _, line in cases for finding in labels(line)}
    lexicon = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))["attributes"]
    every = {(attribute, value) for attribute, entry in lexicon.items() for value in entry["values"]}
    # The depths of BUS-BRA and the orientation words are written in English only.
    only_english = {("place", "central depth"), ("place", "deep")}
    assert every - seen <= (only_english if cases is CHINESE else set())


def test_words_of_the_gland_are_not_taken_for_the_lesion():
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
    assert time.process_time() - started < 4


def test_the_same_report_scores_one_in_other_words():
    reference = "An oval hypoechoic mass is seen in the left breast. The margin is circumscribed. No calcification."
    reworded = "Left breast: a hypoechoic mass, oval, well-defined, without calcifications."
    scores = FindingsF1()([pair(0, reworded, reference)])
    assert scores["findings_f1"] == scores["findings_precision"] == scores["findings_recall"] == 1


def test_scores_are_counted_over_the_split():
    pairs = [
        pair(0, "An oval mass in the left breast.", "A round mass in the left breast."),  # 3 of 4 agree
        pair(1, "No mass.", "An oval mass. BI-RADS 3."),  # 0 of 1 told, of 4 true
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


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="of no reports"):
        FindingsF1()([])


def test_a_zero_is_never_silent():
    reference = "An oval mass in the left breast."
    with pytest.warns(UserWarning, match="1 of 1 predictions are empty"):
        assert FindingsF1()([pair(0, "", reference)])["findings_f1"] == 0
    with pytest.warns(UserWarning, match="no finding in any of 1 references"):
        FindingsF1()([pair(0, "a dog", "a cat")])
    with pytest.warns(UserWarning, match="no finding in any of 1 predictions"):
        FindingsF1()([pair(0, "a dog", reference)])
    with pytest.warns(UserWarning, match="no finding in 1 of 2 references"):
        FindingsF1()([pair(0, "a cat", "a cat"), pair(1, reference, reference)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FindingsF1()([pair(0, reference, reference)])


def test_a_broken_expression_of_the_lexicon_names_its_place():
    lexicon = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    lexicon["attributes"]["side"]["values"]["left"]["en"] = ["(left"]
    with pytest.raises(ValueError, match=r"lexicon\.yaml: side/en"):
        Reader("en", lexicon)


def test_a_report_is_read_in_about_a_millisecond():
    report = " ".join(text for text, _ in ENGLISH[:8])
    read(report)
    started = time.process_time()
    for number in range(100):  # a number makes each one new to the cache of whole texts
        read(f"{report} Exam {number}.")
    assert (time.process_time() - started) / 100 < 0.002
