"""Words, characters and names of scores."""

from __future__ import annotations

from harness import problem

from framework.scoring.scorer import Scorer
from plugins.metric.bleu import Bleu
from plugins.tokenizer.words import Words


def test_chinese_is_scored_on_words_and_on_characters() -> None:
    tokenizer = Words()
    tokenizer.fit(["左乳见一低回声结节，大小_2DS_。", "双乳未见明显肿块。"])
    scorer = Scorer([Bleu()], tokenizer)
    values = scorer.score(
        [
            ("a", "左乳见一低回声结节。", "左乳见一低回声结节，大小_2DS_。"),
            ("b", "双乳未见肿块。", "双乳未见明显肿块。"),
        ]
    )
    assert 0 < values["bleu_4"] != values["bleu_4_char"] > 0
    assert "character" in scorer.segmentation


def test_an_unknown_monitor_names_the_known_scores() -> None:
    with problem("unknown-name", place="evaluate.monitor") as found:
        Scorer([Bleu()], Words()).metric_of("bleu_5")
    assert "bleu_1" in found[0].expected
