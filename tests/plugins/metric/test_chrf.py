"""chrF against sacrebleu."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from pairs import pair
from sacrebleu.metrics import CHRF

from framework.exam import Pair
from plugins.metric.chrf import Chrf

ENGLISH = [
    "An oval hypoechoic mass (12 x 8 mm) is seen in the left breast, with well-defined margins.",
    "No focal lesion is seen. The glandular tissue is homogeneous!",
    'The "dominant" nodule measures 1.8 cm; BI-RADS 4A. A',
]
CHINESE = ["甲状腺右叶见一低回声结节，大小约1.2×0.8cm，边界清。", "双乳腺体回声均匀，未见明显结节。 CDFI：未见血流。"]


def perturbed(text: str, draw: random.Random) -> str:
    """Some characters dropped, doubled or swapped."""
    return "".join(draw.choice((c, c, c, c, c, "", c + c, draw.choice(text))) for c in text)


def corpus(texts: Sequence[str], seed: int) -> list[Pair]:
    draw = random.Random(seed)
    references = [draw.choice(texts) for _ in range(12)]
    predictions = [perturbed(draw.choice([text, text, draw.choice(texts)]), draw) for text in references]
    return [pair(number, *each) for number, each in enumerate(zip([*predictions[:-2], "", "a"], references))]


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


def test_a_masked_measure_is_one_character_and_one_word() -> None:
    other = Chrf()([pair(0, "大小约_3DS_", "大小约_2DS_")])["chrf"]
    assert other == pytest.approx(Chrf()([pair(0, "大小约乙", "大小约甲")])["chrf"])
    assert other < 1
    assert Chrf(words=2)([pair(0, "a _2DS_ mass", "a _2DS_ mass")])["chrf"] == 1
