"""The words tokenizer: what stays whole, what comes back, and what a stored vocabulary must hold."""

import json
import pickle

import pytest
from harness import problem
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.exam import BOS, EOS, UNK
from framework.text.segmentation import TERMS, detect_language
from plugins.tokenizer.words import Words

ENGLISH = [
    "The left breast shows a 1.8 x 0.7 cm oval, hypoechoic mass (upper outer quadrant). BI-RADS 4A.",
    "No calcification; color Doppler shows no flow. Well-defined margins at 10 o'clock.",
    "BI-RADS 2: benign cyst. The lesion measures 12 mm/8 mm on Doppler.",
]
CHINESE = [
    "甲状腺右叶见一低回声结节，大小约_2DS_cm，边界清，形态规则。CDFI：未见明显血流信号。",
    "左侧乳腺外上象限_Loc_见一无回声区，大小约1.8×0.7cm，BI-RADS 4A类。双侧腋窝未见肿大淋巴结。",
]


def fitted(reports: list[str], **keys) -> Words:
    words = Words(**keys)
    words.fit(reports)
    return words


def test_chinese_is_split_by_the_ultrasound_dictionary():
    assert Words().segment("甲状腺右叶见一低回声结节") == ["甲状腺", "右叶", "见", "一", "低回声", "结节"]
    assert Words().segment("双乳腺体回声不均匀") == ["双乳", "腺体", "回声", "不均匀"]


@pytest.mark.parametrize("mask", ["_2DS_", "_3DS_", "_SCM_", "_SMM_", "_Loc_", "_LocR_", "_r_", "_New9_"])
@pytest.mark.parametrize("around", ["大小约{}cm，", "{}{}", "size {} mm", "x{}y", "（{}）", "约{}"])
def test_a_masked_measure_is_one_word_in_every_case(mask, around):
    text = around.format(*[mask] * around.count("{}"))
    assert Words().segment(text).count(mask) == around.count("{}")


def test_numbers_and_bi_rads_are_single_words():
    assert Words().segment("1.8×0.7cm")[:3] == ["1.8", "×", "0.7"]
    assert Words().segment("1.8x0.7 cm") == ["1.8", "x", "0.7", "cm"]
    assert Words().segment("BI-RADS4A类") == ["bi-rads", "4a", "类"]
    assert Words(lowercase=False).segment("BI-RADS 3, TI-RADS 4.") == ["BI-RADS", "3", ",", "TI-RADS", "4", "."]
    assert Words().segment("well-defined at 3 o'clock") == ["well-defined", "at", "3", "o'clock"]


def test_english_reports_survive_encode_and_decode():
    words = fitted(ENGLISH)
    assert words.language == "en"
    for report in ENGLISH:
        assert words.decode(words.encode(report)) == report


def test_chinese_reports_survive_encode_and_decode():
    words = fitted(CHINESE)
    assert words.language == "zh"
    for report in CHINESE:
        assert words.decode(words.encode(report)) == report


def test_english_reports_survive_without_lower_case():
    words = fitted(ENGLISH, lowercase=False)
    assert [words.decode(words.encode(report)) for report in ENGLISH] == ENGLISH


@given(
    st.lists(
        st.sampled_from(["见", "结节", "mass", "BI-RADS", "1.8", "_2DS_", ",", ".", "，", "(", "x", " "]), max_size=12
    )
)
@settings(max_examples=150, deadline=None)
def test_decoded_text_survives_encode_and_decode(parts):
    text = "".join(parts)
    for language in ("en", "zh"):
        words = fitted([text, "a"], language=language)
        once = words.decode(words.encode(text))
        assert once == words.join(words.segment(text))
        if language == "en":
            assert words.segment(once) == words.segment(text) or "x" in text


def test_truncated_reports_keep_their_end():
    words = fitted(ENGLISH)
    ids = words.encode(ENGLISH[0], max_length=6)
    assert len(ids) == 6 and ids[0] == BOS and ids[-1] == EOS
    assert ids[1:5] == words.encode(ENGLISH[0])[1:5]
    with problem("out-of-range"):
        words.encode("mass", max_length=1)


def test_rare_words_are_unknown_and_omitted_from_the_text():
    words = fitted(["mass seen", "mass found"], min_count=2)
    assert words.vocabulary == ["<pad>", "<bos>", "<eos>", "<unk>", "mass"] and len(words) == 5
    assert words.encode("mass seen") == [BOS, 4, UNK, EOS]
    assert words.decode([BOS, 4, UNK, EOS, 4]) == "Mass"


def test_the_order_of_reports_does_not_change_the_vocabulary():
    assert fitted(ENGLISH).vocabulary == fitted(ENGLISH[::-1]).vocabulary
    assert fitted(["b a", "c c"]).vocabulary[4:] == ["c", "a", "b"]


def test_a_saved_vocabulary_loads_back(tmp_path):
    words = fitted(CHINESE)
    words.save(tmp_path / "tokenizer.json")
    again = Words.load(tmp_path / "tokenizer.json")
    assert again.vocabulary == words.vocabulary and again.segmentation == words.segmentation
    assert again.decode(again.encode(CHINESE[1])) == CHINESE[1]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"vocabulary": ["mass"]},
        {"vocabulary": [*Words.specials, "a", "a"]},
        {"language": "fr"},
        {"min_count": True},
    ],
)
def test_a_wrong_vocabulary_file_is_refused(tmp_path, change):
    path = tmp_path / "tokenizer.json"
    fitted(ENGLISH).save(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with problem("wrong-format", place=str(path)):
        Words.load(path)


def test_a_tokenizer_is_picklable_after_use():
    words = fitted(CHINESE)
    again = pickle.loads(pickle.dumps(words))
    assert again.encode(CHINESE[0]) == words.encode(CHINESE[0])


def test_the_language_is_that_of_most_letters():
    assert detect_language(["CDFI 见结节边界清"]) == "zh"
    assert detect_language(["hypoechoic 结节 _2DS_"]) == "en"
    assert Words(language="zh").language == "zh"
    with pytest.raises(RuntimeError, match="after fit"):
        _ = Words().language


def test_the_segmentation_has_a_name():
    assert fitted(CHINESE).segmentation.startswith("words: rjieba ")
    assert "ultrasound_zh (" in fitted(CHINESE).segmentation
    assert "rjieba" not in fitted(ENGLISH).segmentation


def test_the_dictionary_is_large_and_has_no_term_twice():
    terms = TERMS.read_text(encoding="utf-8").split()
    assert len(terms) == len(set(terms)) >= 300


def test_reports_without_words_are_refused():
    with problem("empty-report"):
        Words().fit(["", " "])
    with problem("out-of-range", place="data.tokenizer.min_count"):
        Words(min_count=5).fit(["mass"])
    with pytest.raises(RuntimeError, match=r"fit\(\)"):
        Words().encode("mass")
