"""Scores pairs of reports beside pycocoevalcap.

Both score the same words. The reports of a data set repeat each other, so there are three sets: reports with a few
words exchanged, of which every text occurs once or each about 20 times, and reports of phantom exams, which repeat
sentences.
"""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu as CocoBleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.rouge.rouge import Rouge as CocoRouge

from benchmarks.reports import reports
from benchmarks.rounds import compare, parser, start, write
from framework.exam import Pair
from plugins.dataset.phantom import Phantom
from plugins.metric.bleu import Bleu
from plugins.metric.cider import Cider
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.rouge_l import RougeL
from plugins.tokenizer.words import Words


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--pairs", type=int, default=20_000)
    options = start(parse, quick={"pairs": 200})
    segment = Words().segment
    rows: list[Any] = []
    for what in ("all texts differ", "each text occurs 20 times", "phantom reports"):
        texts = _texts(what, options.pairs)
        cut = {text: tuple(segment(text)) for pair in texts for text in pair}
        pairs = [Pair(str(n), p, r, cut[p], cut[r]) for n, (p, r) in enumerate(texts)]
        coco = (
            {n: [" ".join(pair.reference_words)] for n, pair in enumerate(pairs)},
            {n: [" ".join(pair.prediction_words)] for n, pair in enumerate(pairs)},
        )
        for ours, theirs in ((Bleu, CocoBleu), (RougeL, CocoRouge), (Cider, CocoCider), (FindingsF1, None)):
            name = f"{ours.__name__}, {what}"
            if options.only not in name:
                continue
            works: dict[str, Any] = {"ours": lambda ours=ours, pairs=pairs: ours()(pairs)}
            if theirs is not None:
                works["pycocoevalcap"] = lambda theirs=theirs, coco=coco: _quiet(theirs(), coco)
            rows += compare(name, "pairs", len(pairs), works, options.rounds)
    write(rows, options, ("pycocoevalcap", "numpy", "scipy"))


def _texts(what: str, count: int) -> list[tuple[str, str]]:
    if what == "phantom reports":
        sources = [Phantom(exams=count, seed=seed).splits()["train"] for seed in (1, 2)]
        return [(one.report, other.report) for one, other in zip(*sources, strict=True)]
    if what == "all texts differ":
        return list(zip(reports(count, 1), reports(count, 2), strict=True))
    written, expected = (reports(count // 20, seed) for seed in (1, 2))
    draw = random.Random(0)
    return [(draw.choice(written), draw.choice(expected)) for _ in range(count)]


def _quiet(scorer: Any, texts: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.compute_score(*texts)


if __name__ == "__main__":
    main()
