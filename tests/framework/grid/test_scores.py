"""Names of scores in a grid, also where the monitor is a weighted sum of scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import problem

from framework.build import build_scorer, build_tokenizer
from framework.grid.file import read_grid
from framework.grid.make import Grid, make_grid
from framework.grid.report import grid_result
from framework.grid.rescoring import NotComparableError, WrittenReports
from framework.grid.results import CellResult
from framework.grid.scores import check_score, higher_is_better
from framework.recipe import load_recipe, save
from framework.recipe.saved import recipe_hash

SEARCH = "search: {{method: random, trials: 2, keys: {{optimizer.lr: {{low: 0.001, high: 0.1}}}}{}}}\n"
WEIGHED = "evaluate.monitor={val/bleu_4: 1, val/cider: 0.5}"


def grid(folder: Path, text: str, *words: str) -> Grid:
    (folder / "g.yaml").write_text(f"recipe: shipped:smoke\n{text}", encoding="utf-8")
    return make_grid(read_grid(folder / "g.yaml"), [f"run.root={folder}", *words])


def test_a_search_shows_the_sum_and_its_scores(tmp_path: Path) -> None:
    made = grid(tmp_path, "axes: {optimizer.lr: [0.1, 0.2]}\n", WEIGHED)
    assert grid_result(made).metrics == ("test/bleu_4", "test/cider")
    searched = grid(tmp_path, SEARCH.format(""), WEIGHED)
    found = grid_result(searched)
    assert found.metrics == ("val/monitor", "test/bleu_4", "test/cider")
    assert found.higher_is_better["val/monitor"] is True


def test_the_sum_is_a_score_if_the_monitor_is_one() -> None:
    one, several = load_recipe("smoke"), load_recipe("smoke", [WEIGHED])
    assert check_score("val/monitor", [several], splits=["val"]) is None and higher_is_better("val/monitor", [several])
    found = check_score("val/monitor", [one], "here", ["val"])
    assert found is not None and (found.code, found.place) == ("unknown-name", "here")
    with problem("unknown-name"):
        higher_is_better("val/monitor", [one])
    assert recipe_hash(one) != recipe_hash(several)
    assert recipe_hash(one) == recipe_hash(load_recipe("smoke", ["evaluate.bootstrap_samples=0"])), (
        "training is the same"
    )


def test_the_direction_of_a_metric_is_read_without_building_it(tmp_path: Path) -> None:
    """So none needs a language, a program or a model."""
    slow = ["meteor", "ratescore", "radeval", "{name: bertscore, weights: nowhere}", "bleu", "repetition"]
    made = grid(tmp_path, "axes: {optimizer.lr: [0.1, 0.2]}\n", f"evaluate.metrics=[{', '.join(slow)}]")
    assert grid_result(made).higher_is_better == {"test/bleu_4": True}
    assert not higher_is_better("test/repeated_4gram_char", [made.base]) and higher_is_better("val/meteor", [made.base])


def test_a_metric_that_names_its_scores_at_run_time_is_built(tmp_path: Path) -> None:
    (tmp_path / "errors.py").write_text(
        "from framework.registry import register\n\n\n@register('metric', 'errors')\nclass Errors:\n"
        '    """Errors."""\n\n    by_words = True\n    higher_is_better = False\n\n'
        "    def __init__(self, *, language: str) -> None:\n        self.names = (f'errors_{language}',)\n"
    )
    keys = [f"plugins=[{tmp_path / 'errors.py'}]", "evaluate.metrics=[meteor, bleu, errors]"]
    recipe = load_recipe("smoke", keys)
    assert higher_is_better("test/errors_en", [recipe]) is False and higher_is_better("test/bleu_2", [recipe]) is True
    chinese = load_recipe("smoke", [*keys, "data.tokenizer.language=zh"])
    assert higher_is_better("test/errors_zh", [chinese]) is False


def test_the_sum_is_not_compared_but_its_scores_are(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", [WEIGHED])
    run, texts = tmp_path / "run", ["an oval cyst .", "no mass is seen .", "an irregular mass ."]
    (run / "predictions").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "model" / "recipe.yaml").write_text(save(recipe), encoding="utf-8")
    tokenizer = build_tokenizer(recipe, texts, None)
    tokenizer.save(run / "model" / "tokenizer.json")
    rows = [(str(number), text, texts[0]) for number, text in enumerate(texts)]
    lines = [json.dumps({"id": name, "reference": true, "prediction": text}) for name, text, true in rows]
    (run / "predictions" / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scores = {f"test/{name}": value for name, value in build_scorer(recipe, tokenizer).score(rows).items()}
    written = WrittenReports(CellResult("a", {}, 1, "done", run, scores, seconds=1, memory_gib=1, parameters=1), "test")
    written.check("bleu_4", written)
    # word for word: the notice under a table
    with pytest.raises(NotComparableError, match="weighted sum"):
        written.check("monitor", written)
