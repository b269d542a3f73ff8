"""Rows of a grid's table, from runs that hold what a finished run holds: predictions, tokenizer and recipe."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, problem

from framework.build import build_scorer
from framework.exam import Pair
from framework.grid.results import CellResult, Row
from framework.grid.rows import SLOW_RESAMPLES, grid_rows
from framework.grid.statistics import holm
from framework.recipe import Recipe, load_recipe
from framework.recipe.saved import save
from framework.scoring.bootstrap import by_calls, by_sums
from framework.scoring.table import NOT_SCORES
from plugins.metric.bleu import Bleu
from plugins.metric.findings_f1 import FindingsF1
from plugins.metric.rouge_l import RougeL
from plugins.tokenizer.words import Words

REFERENCES = [
    "An oval hypoechoic mass is seen in the left breast, with circumscribed margin.",
    "No focal lesion is seen in either breast. The glandular tissue is homogeneous.",
    "An irregular hypoechoic mass with a spiculated margin and posterior shadow in the right breast.",
    "A round anechoic cyst of 1.8 cm in the left breast, with posterior enhancement.",
    "Multiple cysts are seen in both breasts. No enlarged axillary lymph nodes.",
]
CHINESE = ["左乳见低回声结节，边界清，形态规则。", "右乳腺体回声均匀，未见明显占位。", "右乳见无回声区，边界清。"]
SLOW = '''"""A metric that is only called."""
from framework.registry import register


@register("metric", "share_right")
class ShareRight:
    """Share of reports that are word for word right."""

    names = ("share_right",)
    by_words = False
    higher_is_better = True

    def __call__(self, pairs):
        by_id = {pair.exam_id: pair.prediction == pair.reference for pair in pairs}
        values = {"share_right": sum(by_id.values()) / len(by_id)}
        return values | {"share_right/all": float(all(by_id.values()))}
'''


def corrupted(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Texts that have lost or doubled this share of their words."""
    draw = random.Random(seed)
    return [
        " ".join(w * draw.choice([0, 2]) if draw.random() < share else w for w in text.split(" ")) for text in texts
    ]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(ROOT / "recipes" / "smoke.yaml")


@pytest.fixture
def cell(tmp_path: Path, recipe: Recipe) -> Callable[..., CellResult]:
    """Makes a cell that is done, its scores those of its predictions."""
    numbers = itertools.count()

    def made(predictions, references=REFERENCES, *, seed=1, split="test", recipe=recipe, tokenizer=None) -> CellResult:
        run = tmp_path / f"cell-{next(numbers)}"
        (run / "predictions").mkdir(parents=True)
        (run / "model").mkdir()
        (run / "model" / "recipe.yaml").write_text(save(recipe), encoding="utf-8")
        tokenizer = Words() if tokenizer is None else tokenizer
        tokenizer.fit(references)
        tokenizer.save(run / "model" / "tokenizer.json")
        rows = [(f"exam-{number}", *texts) for number, texts in enumerate(zip(predictions, references))]
        lines = [json.dumps({"id": name, "reference": true, "prediction": text}) for name, text, true in rows]
        (run / "predictions" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        scores = build_scorer(recipe, tokenizer).score(rows)
        named = {f"{split}/{name}": value for name, value in scores.items()}
        return CellResult(run.name, {}, seed, "done", run, named, seconds=60.0 * seed, memory_gib=2.0, parameters=100)

    return made


def with_metrics(folder: Path, metrics: str, plugin: str) -> Recipe:
    """The smoke recipe with other metrics, one of them in its own file."""
    folder.mkdir()
    (folder / "own.py").write_text(plugin)
    (folder / "own.yaml").write_text(
        f"_base_: {ROOT}/recipes/smoke.yaml\nplugins: [own.py]\nevaluate: {{metrics: {metrics}, monitor: val/bleu_4}}\n"
    )
    return load_recipe(folder / "own.yaml")


def not_done(seed: int, status: str = "failed", error: str | None = "out of memory") -> CellResult:
    return CellResult("0" * 12, {}, seed, status, Path("nowhere"), error=error)


def rows_of(groups, metrics=("test/bleu_4",), baseline="plain", **more) -> tuple[dict[str, Row], int | None, str]:
    rows, exams, notices = grid_rows(
        [(label, {}, cells) for label, cells in groups.items()], metrics, baseline=baseline, **more
    )
    return {row.label: row for row in rows}, exams, "\n".join(notices)


@pytest.mark.filterwarnings("ignore:BLEU")
def test_three_exams_give_the_result_of_all_27_resamples(cell) -> None:
    worse = [corrupted(REFERENCES[:3], 0.4, seed=seed) for seed in (1, 2)]
    better = [REFERENCES[0], worse[0][1], corrupted(REFERENCES[:3], 0.2, seed=3)[2]]
    plain = [cell(texts, REFERENCES[:3], seed=seed) for seed, texts in enumerate(worse, 1)]
    rows, exams, _ = rows_of({"plain": plain, "better": [cell(better, REFERENCES[:3])]}, ["test/bleu_2"])

    # By calls of the metric on all 27 resamples, which are equally likely.
    words = Words()

    def bleu(texts, drawn):
        cut = [(tuple(words.segment(texts[i])), tuple(words.segment(REFERENCES[i]))) for i in drawn]
        return Bleu()([Pair(str(i), "", "", *pair) for i, pair in enumerate(cut)])["bleu_2"]

    every = np.array(
        [
            bleu(better, drawn) - np.mean([bleu(texts, drawn) for texts in worse])
            for drawn in itertools.product(range(3), repeat=3)
        ]
    )
    found = rows["better"].versus["test/bleu_2"]
    assert exams == 3
    assert found.difference == pytest.approx(bleu(better, range(3)) - np.mean([bleu(t, range(3)) for t in worse]))
    # 1 / 27 = 3.7 % at either end, so the 2.5 % and 97.5 % points are the least and the most.
    assert (found.low, found.high) == pytest.approx((every.min(), every.max()))
    assert found.p == pytest.approx(min(1, 2 * min((every <= 0).mean(), (every >= 0).mean())), abs=0.02)


def test_equal_predictions_have_difference_0_and_p_1(cell) -> None:
    texts = [corrupted(REFERENCES, 0.3, seed=seed) for seed in (1, 2)]
    plain = [cell(each, seed=seed) for seed, each in enumerate(texts, 1)]
    turned = [cell(each, seed=seed) for seed, each in enumerate(texts[::-1], 1)]  # summed in another order
    metrics = ["test/bleu_4", "test/cider", "test/rouge_l", "test/findings_f1"]
    rows, _, notices = rows_of({"plain": plain, "same": turned}, metrics)
    for metric in metrics:
        found = rows["same"].versus[metric]
        assert (found.difference, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
        assert found.p == found.p_corrected == 1
    assert not notices


def test_a_planted_difference_is_found_and_has_a_sign(cell) -> None:
    references = REFERENCES * 8
    good, bad = corrupted(references, 0.1, seed=1), corrupted(references, 0.3, seed=2)
    metrics = ["test/bleu_4", "test/cider", "test/rouge_l", "test/findings_f1"]
    better, exams, _ = rows_of({"plain": [cell(bad, references)], "new": [cell(good, references)]}, metrics)
    worse, _, _ = rows_of({"plain": [cell(good, references)], "new": [cell(bad, references)]}, metrics)
    assert exams == 40
    for metric in metrics:
        up, down = better["new"].versus[metric], worse["new"].versus[metric]
        mean, base = better["new"].values[metric].mean, better["plain"].values[metric].mean
        assert up.difference == pytest.approx(mean - base, abs=2e-6) and up.difference == pytest.approx(
            -down.difference
        )
        assert 0 < up.low < up.difference < up.high and down.high < 0 and up.p < 0.01


def test_holm_is_over_the_rows_of_one_metric(cell) -> None:
    references = REFERENCES * 4
    groups = {"plain": [cell(corrupted(references, 0.3, seed=1), references)]}
    for number, share in enumerate((0.28, 0.24, 0.2), 2):
        groups[f"row {number}"] = [cell(corrupted(references, share, seed=number), references)]
    metrics = ("test/bleu_4", "test/rouge_l")
    rows, _, _ = rows_of(groups, metrics)
    assert rows["plain"].versus == dict.fromkeys(metrics)
    for metric in metrics:
        found = [row.versus[metric] for label, row in rows.items() if label != "plain"]
        assert [one.p_corrected for one in found] == holm([one.p for one in found]) != [one.p for one in found]


def test_missing_seeds_are_named(cell) -> None:
    bad, good = corrupted(REFERENCES, 0.4, seed=1), corrupted(REFERENCES, 0.1, seed=2)
    new = [cell(good, seed=1), not_done(2), cell(bad, seed=3), not_done(4, "queued", None)]
    groups = {"plain": [cell(bad, seed=1)], "new": new, "gone": [not_done(1, "stopped", None)]}
    rows, _, notices = rows_of(groups)
    value = rows["new"].values["test/bleu_4"]
    assert value.count == 2 and value.mean == pytest.approx(
        np.mean([new[0].scores["test/bleu_4"], new[2].scores["test/bleu_4"]])
    )
    assert rows["new"].seconds.count == 2 and rows["new"].seconds.mean == 120 and rows["new"].parameters == 100
    assert [one.seed for one in rows["new"].missing] == [2, 4]
    assert "new: its values are over 2 of 4 seeds: seed 2 failed (out of memory); seed 4 queued" in notices
    assert rows["gone"].values == {"test/bleu_4": None} and rows["gone"].versus == {"test/bleu_4": None}
    assert "gone: it has no values: seed 1 stopped" in notices
    # The difference is that of the numbers in the table: both done seeds against the only one of the baseline.
    assert rows["new"].versus["test/bleu_4"].difference == pytest.approx(
        value.mean - rows["plain"].values["test/bleu_4"].mean, abs=2e-6
    )


def test_a_baseline_without_a_done_seed_compares_nothing(cell) -> None:
    rows, exams, notices = rows_of({"new": [cell(REFERENCES)], "plain": [not_done(1)]})
    assert (
        exams is None and rows["new"].versus == {"test/bleu_4": None} and rows["new"].values["test/bleu_4"].mean > 0.9
    )
    assert "nothing is compared on test: no seed of the baseline, plain, is done" in notices


def other_exams(cell):
    return cell(REFERENCES[:4], REFERENCES[:4]), "1 exams are in only one of seed 1 and seed 1 of the baseline"


def other_references(cell):
    changed = [*REFERENCES[:4], "A scar."]
    return cell(REFERENCES, changed), "has other references than seed 1 of the baseline: 1 of 5"


def other_words(cell):
    return cell(REFERENCES, tokenizer=Words(lowercase=False)), "is scored on 'words: words and punctuation', seed 1 of"


def no_predictions(cell):
    made = cell(REFERENCES)
    (made.run / "predictions" / "test.jsonl").unlink()
    return made, "No such file"


def no_model(cell):
    made = cell(REFERENCES)
    (made.run / "model" / "recipe.yaml").unlink()
    return made, "[no-model]"


def other_predictions(cell):
    made = cell(REFERENCES)
    path = made.run / "predictions" / "test.jsonl"
    path.write_text(path.read_text().replace('"prediction": "An oval', '"prediction": "A round'))
    return made, "scores.json has 1.000000; score them again: launch.py evaluate"


@pytest.mark.parametrize(
    "broken", [other_exams, other_references, other_words, no_predictions, no_model, other_predictions]
)
def test_a_row_that_cannot_be_compared_has_a_notice_and_the_rest_is_compared(cell, broken) -> None:
    made, reason = broken(cell)
    plain, good = cell(corrupted(REFERENCES, 0.4, seed=1)), cell(REFERENCES)
    rows, exams, notices = rows_of({"plain": [plain], "odd": [cell(REFERENCES), made], "good": [good]})
    assert rows["odd"].versus == {"test/bleu_4": None} and rows["odd"].values["test/bleu_4"].count == 2
    assert rows["good"].versus["test/bleu_4"].difference > 0 and exams == 5
    assert notices.startswith("odd: ") and reason in notices and "good" not in notices.split("odd: ", 1)[0]
    # Nothing is compared with an odd baseline.
    rows, exams, notices = rows_of({"plain": [plain, made], "good": [good]})
    assert rows["good"].versus == {"test/bleu_4": None} and exams is None and "plain" in notices


def test_a_metric_with_other_keys_does_not_compare(cell, tmp_path) -> None:
    init = "    def __init__(self, *, mercy: float = 0.0) -> None: ...\n\n"
    keyed = SLOW.replace("    def __call__", f"{init}    def __call__")

    def recipe(mercy):
        metrics = f"[bleu, {{name: share_right, mercy: {mercy}}}]"
        return with_metrics(tmp_path / f"mercy-{mercy}", metrics, keyed)

    groups = {"plain": [cell(REFERENCES, recipe=recipe(0.0))], "new": [cell(REFERENCES, recipe=recipe(0.5))]}
    rows, _, notices = rows_of(groups, ["test/share_right", "test/bleu_4"])
    assert rows["new"].versus["test/share_right"] is None and rows["new"].versus["test/bleu_4"].p == 1
    assert "seed 1 has metric 'share_right' with other keys than the baseline" in notices


def test_a_metric_without_statistics_per_exam_has_fewer_resamples_and_a_notice(cell, tmp_path) -> None:
    slow = with_metrics(tmp_path / "slow", "[bleu, share_right]", SLOW)
    references = REFERENCES * 4
    half = [text if number % 2 else "A scar." for number, text in enumerate(references)]
    groups = {"plain": [cell(half, references, recipe=slow)], "new": [cell(references, references, recipe=slow)]}
    rows, exams, notices = rows_of(groups, ["test/bleu_4", "test/share_right", "test/share_right/all"])
    found = rows["new"].versus["test/share_right"]
    # The share of wrong ones among 20, half of which are: binomial, deviation sqrt(0.25 / 20) = 0.11.
    assert found.difference == pytest.approx(0.5) and exams == 20
    assert (found.low, found.high) == pytest.approx((0.5 - 1.96 * 0.112, 0.5 + 1.96 * 0.112), abs=0.06)
    assert found.p == pytest.approx(2 / (1 + SLOW_RESAMPLES))
    assert "test/share_right: on 500 resamples of the exams, not 10000, so that no p is below 0.004" in notices
    assert (
        rows["new"].versus["test/share_right/all"] is None
        and "share_right/all is not compared: a resample may lack this part" in notices
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("float('nan') if '(1)' in str(by_id) else 1.0", "it is not finite on some resamples"),
        ("1 / ('(1)' not in str(by_id))", "its metric fails on a resample: ZeroDivisionError"),
    ],
)
def test_a_metric_that_fails_on_a_resample_does_not_affect_the_others(cell, tmp_path, broken, reason) -> None:
    own = SLOW.replace("sum(by_id.values()) / len(by_id)", broken)
    recipe = with_metrics(tmp_path / "own", "[bleu, share_right]", own)
    groups = {"plain": [cell(REFERENCES, recipe=recipe)], "new": [cell(REFERENCES, recipe=recipe)]}
    rows, _, notices = rows_of(groups, ["test/bleu_4", "test/share_right"])
    assert rows["new"].versus["test/share_right"] is None and reason in notices
    assert rows["new"].versus["test/bleu_4"].p == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", [Bleu(), RougeL(), FindingsF1()], ids=lambda metric: type(metric).__name__)
def test_per_exam_statistics_give_the_same_as_a_call_on_any_resample(metric) -> None:
    words, texts = Words(), [*corrupted(REFERENCES, 0.3, seed=4), *REFERENCES[1:], REFERENCES[0]]
    pairs = [
        Pair(str(number), text, true, tuple(words.segment(text)), tuple(words.segment(true)))
        for number, (text, true) in enumerate(zip(texts, REFERENCES * 2))
    ]
    counts_RE = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=40).astype(float)
    sums, calls = by_sums(metric, pairs)(counts_RE), by_calls(metric, pairs)(counts_RE)
    assert tuple(calls) == metric.names
    for name, value_R in calls.items():
        assert sums[name] == pytest.approx(value_R, abs=1e-9) and value_R.std() > 0


def test_an_exam_that_is_drawn_twice_counts_twice_also_if_a_metric_indexes_by_id() -> None:
    def metric(pairs):
        right = {pair.exam_id: pair.prediction == pair.reference for pair in pairs}
        return {"right": sum(right.values()) / len(right)}

    metric.names = ("right",)
    pairs = [Pair("a", "mass", "mass", (), ()), Pair("b", "mass", "cyst", (), ())]
    values = by_calls(metric, pairs)(np.array([[1.0, 1.0], [3.0, 1.0], [0.0, 4.0]]))
    assert list(values["right"]) == [0.5, 0.75, 0.0]


def test_characters_and_attributes_are_metrics_too(cell) -> None:
    references = CHINESE * 3
    predictions = [text.replace("左", "右").replace("均匀", "不均") for text in references]
    metrics = ["test/bleu_4_char", "test/cider_char", "test/findings_f1/side"]
    rows, exams, notices = rows_of(
        {"plain": [cell(predictions, references)], "new": [cell(references, references)]}, metrics
    )
    assert exams == 9 and not notices
    for metric in metrics:
        assert rows["new"].versus[metric].difference == pytest.approx(
            rows["new"].values[metric].mean - rows["plain"].values[metric].mean, abs=2e-6
        )
        assert rows["new"].versus[metric].difference > 0


def test_val_is_a_split_too(cell) -> None:
    bad = corrupted(REFERENCES, 0.4, seed=1)
    rows, exams, _ = rows_of(
        {"plain": [cell(bad, split="val")], "new": [cell(REFERENCES, split="val")]}, ["val/rouge_l"]
    )
    assert exams == 5 and rows["new"].versus["val/rouge_l"].difference > 0


def test_the_order_of_exams_in_the_files_changes_nothing(cell) -> None:
    bad, plain = corrupted(REFERENCES, 0.3, seed=1), cell(corrupted(REFERENCES, 0.4, seed=2))
    new = cell(bad)
    before = rows_of({"plain": [plain], "new": [new]})[0]["new"].versus
    path = new.run / "predictions" / "test.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n")
    assert rows_of({"plain": [plain], "new": [new]})[0]["new"].versus == before


def test_splits_of_other_sizes_and_missing_scores_have_notices(cell) -> None:
    def both(texts, seed=1):
        small, whole = cell(texts[:3], REFERENCES[:3], split="val"), cell(texts, seed=seed)
        (small.run / "predictions" / "val.jsonl").rename(whole.run / "predictions" / "val.jsonl")
        return replace(whole, scores={**small.scores, **whole.scores})

    plain, new = both(corrupted(REFERENCES, 0.4, seed=1)), both(REFERENCES)
    less = both(REFERENCES, seed=2)
    less = replace(less, parameters=90, scores={n: v for n, v in less.scores.items() if n != "test/cider"})
    metrics = ["test/bleu_4", "val/bleu_4", "test/cider"]
    rows, exams, notices = rows_of({"plain": [plain], "new": [new, less]}, metrics)
    assert exams == 5 and "val/...: compared over 3 exams, test/... over 5" in notices
    assert rows["new"].versus["test/bleu_4"] and rows["new"].versus["val/bleu_4"]
    assert rows["new"].values["test/cider"].count == 1 and rows["new"].versus["test/cider"] is None
    assert "new: test/cider is not among the scores of seed 2" in notices
    assert "new: test/cider is not compared: seed 2 has no such score" in notices
    assert "new: 90 to 100 parameters, by seed; the table shows the most" in notices and rows["new"].parameters == 100


@pytest.mark.filterwarnings("ignore")
def test_a_single_exam_is_not_compared(cell) -> None:
    alone = REFERENCES[:1]
    rows, exams, notices = rows_of({"plain": [cell(["A mass."], alone)], "new": [cell(alone, alone)]})
    assert exams is None and rows["new"].versus == {"test/bleu_4": None}
    assert "because of the baseline, plain: 1 exam, and resampling needs two" in notices


def test_nothing_is_compared_without_a_baseline_or_a_test(cell) -> None:
    groups = {"plain": [cell(corrupted(REFERENCES, 0.4, seed=1))], "new": [cell(REFERENCES)]}
    for more in ({"baseline": None}, {"compare": "none"}):
        rows, exams, notices = rows_of(groups, **more)
        assert exams is None and not notices and all(row.versus == {"test/bleu_4": None} for row in rows.values())


def test_an_unknown_metric_is_refused_once_all_cells_are_done(cell) -> None:
    with problem("unknown-name", place="report.metrics"):
        rows_of({"plain": [cell(REFERENCES)]}, ["test/blue_4"])
    rows_of({"plain": [cell(REFERENCES), not_done(2)]}, ["test/blue_4"])


def test_a_real_run_compares_with_itself(smoke_run: Path) -> None:
    stored = json.loads((smoke_run / "scores.json").read_text())
    scores = {f"{split}/{name}": value for split in ("val", "test") for name, value in stored[split]["model"].items()}
    run = CellResult("0" * 12, {}, 1, "done", smoke_run, scores)
    metrics = [name for name in scores if name.split("/", 1)[1] not in NOT_SCORES]
    rows, exams, notices = rows_of({"plain": [run], "same": [run]}, metrics)
    assert exams == 16 and not notices
    assert {one.p for one in rows["same"].versus.values()} == {1.0}


@pytest.mark.long  # most of it makes the runs
def test_a_table_over_300_exams_takes_seconds(cell) -> None:
    """6 rows of 3 seeds and 4 metrics, 10000 resamples."""
    references = [f"{REFERENCES[n % 5]} {REFERENCES[n % 4]} {REFERENCES[n % 3]} Size {n} mm." for n in range(300)]
    groups = {
        label: [cell(corrupted(references, 0.2, seed=10 * number + seed), references, seed=seed) for seed in (1, 2, 3)]
        for number, label in enumerate(["plain", "a", "b", "c", "d", "e"])
    }
    started = time.process_time()
    rows, exams, notices = rows_of(groups, ["test/bleu_4", "test/rouge_l", "test/cider", "test/findings_f1"])
    took = time.process_time() - started
    assert exams == 300 and not notices and all(rows["e"].versus.values())
    assert took < 30, f"{took:.1f} s"
