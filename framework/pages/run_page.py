"""One offline HTML page of a run: its scores beside floors and ceilings, curves, topics, and exams to look at."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from framework.scoring.table import legend, score_table

if TYPE_CHECKING:
    from framework.build import Parts

SHOWN = 12  # test exams on the page
PANELS = 3  # of curves in a row
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#1c2733;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #d5dce3}
table{border-collapse:collapse}td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #e6eaee}
td:first-child,th:first-child{text-align:left}tr.model{background:#e3f1ea;font-weight:600}
.exam{display:grid;grid-template-columns:300px 1fr;gap:1em;margin:1em 0;padding:1em 0;border-bottom:1px solid #e6eaee}
.exam img{width:100%;background:#000}.who{color:#66727f;font-size:.85em}.same{color:#1c7c4a}.other{color:#b3402a}
img.wide{max-width:100%}p{margin:.2em 0 .7em}@media(max-width:700px){.exam{grid-template-columns:1fr}}
"""


def write_page(run: Path, parts: Parts) -> Path:
    """Draws `run/report.html` from what the run has stored and the images of its test exams."""
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    body = [f"<h1>{html.escape(f'{run.parent.name} / {run.name}')}</h1>"]
    for split in ("test", "val"):
        if split in scores:
            body += [f"<h2>Scores on {split}</h2>", _table(scores[split])]
    body.append(f"<p class=who>Words of the scores: {html.escape(scores['segmentation'])}</p>")
    if "test" in scores:
        body += ["<h2>Findings on test, by attribute</h2>", _attributes(scores["test"])]
    if (run / "metrics.jsonl").is_file():  # not beside a model that was copied to another place
        body += ["<h2>Curves</h2>", _curves(run / "metrics.jsonl")]
    if (run / "topics.png").is_file():
        picture = base64.b64encode((run / "topics.png").read_bytes()).decode()
        body += ["<h2>Topics of the training reports</h2>", f"<img class=wide src=data:image/png;base64,{picture}>"]
    body += ["<h2>Test exams</h2>", *_exams(run / "predictions" / "test.jsonl", parts)]
    page = run / "report.html"
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(run.name)}</title><style>{STYLE}</style>"
    page.write_text(head + "\n".join(body), encoding="utf-8")
    return page


def _table(scores: dict[str, dict[str, float]]) -> str:
    header, rows = score_table(scores)
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    for row in rows:
        mark = " class=model" if row[0].startswith(("the model", "its ")) else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join(lines) + f"</table><p class=who>{html.escape(legend(scores))}</p>"


def _attributes(scores: dict[str, dict[str, float]]) -> str:
    """F1 of each attribute, of the model and of the floors that it should beat."""
    shown = [name for name in ("model", "fixed_report", "nearest_image") if name in scores]
    names = sorted(name for name in scores["model"] if name.startswith("findings_f1/"))
    if not names:
        return "<p class=who>The recipe has no metric of findings.</p>"
    lines = ["<table><tr><th>attribute</th>" + "".join(f"<th>{name}</th>" for name in shown) + "</tr>"]
    for name in names:
        cells = "".join(f"<td>{scores[row].get(name, 0):.3f}</td>" for row in shown)
        lines.append(f"<tr><td>{html.escape(name.split('/', 1)[1])}</td>{cells}</tr>")
    return "\n".join(lines) + "</table>"


def _curves(path: Path) -> str:
    drawn = _panels(path)
    rows = math.ceil(len(drawn) / PANELS)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    spots = figure.subplots(rows, PANELS, squeeze=False).flat
    for (title, lines), axes in zip(drawn.items(), spots):  # in this order: it takes no spot too many
        axes.set_title(title, fontsize=9, loc="left")
        for name, points in lines.items():
            few = {"marker": "o", "ms": 3} if title.startswith("val/") else {"lw": 1}
            axes.plot(*zip(*points), label=name, **few)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=7)
    for axes in spots:  # those that are left
        axes.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"<img class=wide src=data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}>"


def _panels(path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """What is drawn on one scale: panel -> line -> steps and values, from the records of a run.

    The loss with its terms is one panel, what one term tells of itself is one, and each score on validation; scores
    that differ in a number alone, such as those of BLEU, share theirs. Those of single attributes have a table instead.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        split, *names = record["name"].split("/")
        if split == "train" and record["name"] not in ("train/lr", "train/gradient_norm"):
            panel, label = "/".join([split, *names[:-1]]), names[-1]
        elif split == "val" and len(names) == 1:
            panel, label = re.sub(r"_\d+$", "", record["name"]), names[0]
        else:
            continue
        found.setdefault(panel, {}).setdefault(label, []).append((record["step"], record["value"]))
    return found


def _exams(path: Path, parts: Parts) -> list[str]:
    if not path.is_file():
        return ["<p class=who>No predictions yet.</p>"]
    cache = parts.exams["test"].cache
    cards = []
    for line in path.read_text(encoding="utf-8").splitlines()[:SHOWN]:
        row = json.loads(line)
        views = np.concatenate(list(cache.images(row["id"]).transpose(0, 2, 3, 1)), axis=1)
        buffer = io.BytesIO()
        Image.fromarray(views.squeeze(-1) if views.shape[-1] == 1 else views).save(buffer, format="png")
        picture = base64.b64encode(buffer.getvalue()).decode()
        same = "same" if row["prediction"] == row["reference"] else "other"
        cards.append(
            f"<div class=exam><div><img src=data:image/png;base64,{picture}><span class=who>{html.escape(row['id'])}"
            f"</span></div><div><span class=who>reference</span><p>{html.escape(row['reference'])}</p>"
            f"<span class=who>prediction</span><p class={same}>{html.escape(row['prediction'])}</p></div></div>"
        )
    return cards
