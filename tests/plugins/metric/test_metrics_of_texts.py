"""chrF equal to sacrebleu, variety and repetition and length counted by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from pairs import pair
from sacrebleu.metrics import CHRF

from framework.exam import Pair
from framework.text.segmentation import split
from plugins.metric.chrf import Chrf
from plugins.metric.distinct import Distinct
from plugins.metric.length import Length
from plugins.metric.repetition import Repetition

ENGLISH = [
    "An oval hypoechoic mass (12 x 8 mm) is seen in the left breast, with well-defined margins.",
    "No focal lesion is seen. The glandular tissue is homogeneous!",
    'The "dominant" nodule measures 1.8 cm; BI-RADS 4A. A',
]
CHINESE = ["甲状腺右叶见一低回声结节，大小约1.2×0.8cm，边界清。", "双乳腺体回声均匀，未见明显结节。 CDFI：未见血流。"]


def changed(text: str, draw: random.Random) -> str:
    """Some characters dropped, doubled or swapped."""
    return "".join(draw.choice((c, c, c, c, c, "", c + c, draw.choice(text))) for c in text)


def corpus(texts: Sequence[str], seed: int) -> list[Pair]:
    draw = random.Random(seed)
    references = [draw.choice(texts) for _ in range(12)]
    told = [changed(draw.choice([text, text, draw.choice(texts)]), draw) for text in references]
    return [pair(number, *each) for number, each in enumerate(zip([*told[:-2], "", "a"], references))]


@pytest.mark.filterwarnings("ignore:chrF")
@pytest.mark.parametrize("words", [0, 1, 2])
@pytest.mark.parametrize("texts", [ENGLISH, CHINESE, [*ENGLISH, *CHINESE, "a", "结节"]])
def test_chrf_equals_sacrebleu(texts: list[str], words: int) -> None:
    theirs = CHRF(word_order=words)
    for seed in range(5):
        pairs = corpus(texts, seed)
        expected = theirs.corpus_score([each.prediction for each in pairs], [[each.reference for each in pairs]]).score
        assert Chrf(words=words)(pairs)["chrf"] == pytest.approx(expected / 100, abs=1e-9)
        for each in pairs:
            expected = theirs.corpus_score([each.prediction], [[each.reference]]).score
            assert Chrf(words=words)([each])["chrf"] == pytest.approx(expected / 100, abs=1e-9)


def test_chrf_takes_a_mask_for_one_character_and_one_word() -> None:
    other = Chrf()([pair(0, "大小约_3DS_", "大小约_2DS_")])["chrf"]
    assert other == pytest.approx(Chrf()([pair(0, "大小约乙", "大小约甲")])["chrf"])
    assert other < 1
    assert Chrf(words=2)([pair(0, "a _2DS_ mass", "a _2DS_ mass")])["chrf"] == 1


def test_chrf_says_how_many_reports_are_empty() -> None:
    with pytest.warns(UserWarning, match="chrF: 1 of 2 predictions are empty"):
        assert Chrf()([pair(0, " ", "mass"), pair(1, "mass", "mass")])["chrf"] < 1


def test_distinct_counts_different_runs_over_the_whole_split() -> None:
    pairs = [pair(0, "a mass a mass", "a mass"), pair(1, "a cyst", "the cyst")]
    values = Distinct()(pairs)
    assert values["distinct_1"] == 3 / 6  # a, mass, cyst
    assert values["distinct_2"] == 3 / 4  # a mass, mass a, a cyst
    assert values["distinct_1/references"] == values["distinct_2/references"] == 1
    assert set(Distinct()([pair(0, "", "a mass")]).values()) == {0.0, 1.0}


def test_one_report_for_all_is_less_varied_than_the_references() -> None:
    told = "An oval mass in the left breast."
    values = Distinct()([pair(number, told, text) for number, text in enumerate(ENGLISH * 3)])
    assert values["distinct_1"] < values["distinct_1/references"] / 2


def test_repetition_finds_a_run_that_comes_twice_and_a_sentence_said_before() -> None:
    pairs = [
        pair(0, "no mass is seen and no mass is seen", "no mass is seen here"),  # a run of four twice
        pair(1, "A cyst. A  cyst. No mass. a cyst.", "A cyst. A cyst."),  # two of four sentences
        pair(2, "no mass is no mass is", "no mass"),  # runs of three alone
        pair(3, "", "no mass"),
    ]
    values = Repetition()(pairs)
    assert values["repeated_4gram"] == 1 / 4 and values["repeated_4gram/references"] == 0
    assert values["repeated_sentence"] == 2 / 6 and values["repeated_sentence/references"] == 1 / 5


def test_chinese_sentences_that_repeat_are_found_and_a_decimal_ends_none() -> None:
    pairs = [pair(0, "左乳见结节，约1.2cm。左乳见结节，约1.2cm。右乳正常", "左乳见结节，约1.2cm。")]
    assert Repetition()(pairs)["repeated_sentence"] == 1 / 3


def test_a_running_on_text_repeats_as_a_tokenizer_cuts_it() -> None:
    words = tuple(split("双乳未见明显结节。双乳未见明显结节。双乳未见明显结节。"))
    looping = Pair("0", "", "a", words, ("a",))
    assert Repetition()([looping])["repeated_4gram"] == 1


def test_length_is_a_mean_over_reports_beside_the_ratio_of_all_words() -> None:
    pairs = [pair(0, "a b c d", "a b"), pair(1, "a", "a b c d")]
    assert Length()(pairs) == {"length_match": (1 / 2 + 1 / 4) / 2, "length_match/ratio": 5 / 6}


@pytest.mark.parametrize("metric", [Chrf, Distinct, Repetition, Length])
def test_no_pairs_is_an_error(metric: type) -> None:
    with pytest.raises(ValueError, match="no reports: the split is empty"):
        metric()([])


@pytest.mark.parametrize(("metric", "told"), [(Chrf, "is empty"), (Length, "has no words")])
def test_a_reference_without_words_names_its_exam(metric: type, told: str) -> None:
    with pytest.raises(ValueError, match=f"exam 7 {told}"):
        metric()([pair(7, "a mass", " ")])
