"""BLEU, ROUGE-L and CIDEr against pycocoevalcap; warnings and errors of all metrics without models."""

import random
import time
import warnings
from collections.abc import Sequence

import pytest
from harness import problem
from pycocoevalcap.bleu.bleu import Bleu as CocoBleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.rouge.rouge import Rouge as CocoRouge

from framework.exam import Pair
from plugins.metric.bleu import Bleu
from plugins.metric.chrf import Chrf
from plugins.metric.cider import Cider
from plugins.metric.distinct import Distinct
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.length import Length
from plugins.metric.repetition import Repetition
from plugins.metric.rouge_l import RougeL, _by_number, lcs_lengths
from plugins.tokenizer.words import Words

ENGLISH = [
    "An oval hypoechoic mass is seen in the left breast, with circumscribed margins.",
    "No focal lesion is seen. The glandular tissue is homogeneous.",
    "The thyroid is normal in size. A 1.8 x 0.7 cm nodule is seen in the right lobe.",
    "An oval hypoechoic mass is seen in the right breast, with spiculated margins and calcification.",
]
CHINESE = [
    "甲状腺右叶见一低回声结节，大小约_2DS_cm，边界清，形态规则。",
    "双乳腺体回声均匀，未见明显结节。CDFI：未见明显血流信号。",
    "甲状腺左叶见一无回声区，大小约_2DS_cm，边界清。双侧颈部未见肿大淋巴结。",
    "肝脏大小正常，实质回声均匀，未见占位。",
]
SCORERS = (Bleu, RougeL, Cider)


def pair(exam_id: int, prediction: Sequence[str], reference: Sequence[str]) -> Pair:
    return Pair(str(exam_id), " ".join(prediction), " ".join(reference), tuple(prediction), tuple(reference))


def corpus(texts: list[str], reports: int, seed: int, words_each: int = 0) -> list[Pair]:
    """References from these texts and predictions that drop, swap and repeat some of their words."""
    draw, words = random.Random(seed), Words()
    made = []
    for number in range(reports):
        reference = words.segment(draw.choice(texts)) + draw.choices(words.segment(" ".join(texts)), k=words_each)
        source = reference if draw.random() < 0.8 else words.segment(draw.choice(texts))
        prediction = [draw.choice(reference) if draw.random() < 0.2 else w for w in source if draw.random() < 0.9]
        made.append(pair(number, prediction or ["x"], reference))
    return made


def coco(pairs: list[Pair]) -> dict[str, float]:
    references = {p.exam_id: [" ".join(p.reference_words)] for p in pairs}
    predictions = {p.exam_id: [" ".join(p.prediction_words)] for p in pairs}
    bleu = CocoBleu(4).compute_score(references, predictions, verbose=0)[0]
    return {
        **{f"bleu_{n}": score for n, score in enumerate(bleu, start=1)},
        "rouge_l": CocoRouge().compute_score(references, predictions)[0],
        "cider": CocoCider().compute_score(references, predictions)[0],
    }


def ours(pairs: list[Pair]) -> dict[str, float]:
    return {name: value for scorer in SCORERS for name, value in scorer()(pairs).items()}


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=["english", "chinese"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_pycocoevalcap(texts, seed):
    pairs = corpus(texts, reports=40, seed=seed, words_each=seed * 3)
    assert ours(pairs) == pytest.approx(coco(pairs), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_corner_cases_equal_pycocoevalcap():
    reference = ["a", "round", "mass", "is", "seen", "in", "the", "left", "breast"]
    for prediction in (["cyst"], ["mass", "a"], [], reference, reference[:3], reference * 3, ["a"] * 9):
        pairs = [pair(0, prediction, reference), pair(1, ["none"], ["no", "mass"])]
        assert ours(pairs) == pytest.approx(coco(pairs), abs=1e-6), prediction
        assert ours(pairs[:1]) == pytest.approx(coco(pairs[:1]), abs=1e-6), prediction


@pytest.mark.filterwarnings("ignore")
def test_character_scores_equal_pycocoevalcap():
    pairs = [
        pair(int(p.exam_id), "".join(p.prediction_words), "".join(p.reference_words))
        for p in corpus(CHINESE, reports=20, seed=7)
    ]
    assert ours(pairs) == pytest.approx(coco(pairs), abs=1e-6)
    assert ours(pairs)["bleu_4"] != pytest.approx(ours(corpus(CHINESE, reports=20, seed=7))["bleu_4"], abs=1e-3)


def test_perfect_reports_score_the_highest():
    pairs = [pair(n, Words().segment(text), Words().segment(text)) for n, text in enumerate(ENGLISH)]
    assert ours(pairs) == pytest.approx(
        {"bleu_1": 1, "bleu_2": 1, "bleu_3": 1, "bleu_4": 1, "rouge_l": 1, "cider": 10}, abs=1e-6
    )


def test_the_order_of_pairs_changes_nothing():
    pairs = corpus(ENGLISH, reports=30, seed=1)
    assert ours(pairs[::-1]) == pytest.approx(ours(pairs), abs=1e-12)


def test_cider_does_not_take_weights_of_other_references():
    metric, first, second = Cider(), corpus(ENGLISH, 20, seed=2), corpus(CHINESE, 20, seed=3)
    alone = Cider()(second)
    metric(first)
    assert metric(second) == alone and metric(first) == Cider()(first)


@pytest.mark.parametrize("longest", [12, 200])  # one number of 64 bits, or several
def test_longest_common_subsequence_equals_dynamic_programming(longest):
    draw = random.Random(5)
    pairs = [[tuple(draw.choices("abcd", k=draw.randint(0, longest))) for _ in range(2)] for _ in range(60)]
    numbers = {}
    first, second = (_by_number(texts, numbers) for texts in zip(*pairs))
    expected = []
    for one, other in pairs:
        row = [0] * (len(other) + 1)
        for a in one:
            row, before = [0], row
            for place, b in enumerate(other):
                row.append(before[place] + 1 if a == b else max(before[place + 1], row[-1]))
        expected.append(row[-1])
    assert lcs_lengths(first, second).tolist() == expected
    assert lcs_lengths(first[:1], second)[0] == expected[0], "one text is compared with all"


@pytest.mark.parametrize("scorer", [*SCORERS, Chrf, Distinct, FindingsF1, Length, Repetition])
def test_an_empty_split_is_refused(scorer):
    with problem("empty-split"):
        scorer()([])


@pytest.mark.parametrize("scorer", [*SCORERS, Chrf, Length])
def test_an_empty_reference_names_its_exam(scorer):
    with problem("empty-report", place="exam 7"):
        scorer()([pair(7, ["mass"], [])])


@pytest.mark.parametrize("scorer", [*SCORERS, Chrf])
def test_empty_predictions_give_a_warning(scorer):
    pairs = [pair(n, Words().segment(text), Words().segment(text)) for n, text in enumerate(ENGLISH)]
    # word for word
    with pytest.warns(UserWarning, match="1 of 5 predictions are empty"):
        scores = scorer()([*pairs, pair(9, [], ["mass"])])
    assert max(scores.values()) < (10 if scorer is Cider else 1)


def test_cider_warns_if_it_is_always_0():
    words = Words().segment(ENGLISH[0])
    # word for word
    with pytest.warns(UserWarning, match="single report is 0 even for a perfect"):
        assert Cider()([pair(0, words, words)])["cider"] == 0
    with pytest.warns(UserWarning, match="all 3 references are equal"):
        assert Cider()([pair(n, words, words) for n in range(3)])["cider"] == 0


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_score_of_0_gives_a_warning(scorer):
    with pytest.warns(UserWarning, match="the language and segmentation"):
        scorer()([pair(0, ["结节"], ["mass"]), pair(1, ["囊肿"], ["cyst"])])


@pytest.mark.parametrize("scorer", SCORERS)
def test_ordinary_reports_give_no_warning(scorer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer()(corpus(ENGLISH, reports=20, seed=0))


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_split_of_350_reports_takes_well_under_a_second(scorer):
    metric, pairs = scorer(), corpus(ENGLISH, reports=350, seed=0, words_each=45)
    started = time.process_time()
    metric(pairs)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("scorer", SCORERS)
def test_names_are_the_keys_of_the_scores(scorer):
    assert tuple(scorer()(corpus(ENGLISH, reports=5, seed=0))) == scorer.names
