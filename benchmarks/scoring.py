"""Scores pairs of reports beside pycocoevalcap.

Both score the same words. The reports of a data set repeat each other, so there are two sets: every text once, or each
text 20 times.
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
    for share, what in ((1.0, "all texts differ"), (0.05, "each text occurs 20 times")):
        written, expected = (reports(int(options.pairs * share), seed) for seed in (1, 2))
        draw = random.Random(0)
        texts = [(draw.choice(written), draw.choice(expected)) for _ in range(options.pairs)]
        if share == 1.0:
            texts = list(zip(written, expected, strict=True))
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


def _quiet(scorer: Any, texts: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.compute_score(*texts)


if __name__ == "__main__":
    main()
