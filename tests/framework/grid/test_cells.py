# ruff: noqa: E501 - messages stand as they are told
"""A grid file becomes recipes: which cells there are, what they are called, and what is said of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from framework.grid.cells import rows_of
from framework.grid.file import find_grid, read_grid, shipped_grids
from framework.grid.make import Grid, make_grid
from framework.recipe import RecipeError, load_recipe, recipe_hash


@pytest.fixture
def grid(tmp_path: Path):
    """Makes the grid of a text."""

    def made(text: str, *overrides: str, recipe: str = "shipped:smoke") -> Grid:
        path = tmp_path / "g.yaml"
        path.write_text(f"recipe: {recipe}\n{text}", encoding="utf-8")
        return make_grid(read_grid(path), overrides)

    return made


@pytest.fixture
def mistakes(grid):
    """The lines that a text is refused with, without the folder of its file."""

    def told(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as refused:
            grid(text, *overrides)
        return [re.sub(r"^\S*/g\.yaml", "g.yaml", line) for line in refused.value.lines]

    return told


ISSUE = """
axes:
  distiller: [{name: none}, {name: faiss_kmeans, topics: 18}, {name: lda, topics: 18}]
  losses.global_semantic.weight: [0, 0.3]
seeds: [1, 2, 3]
report: {metrics: [test/bleu_4], baseline: {distiller: none, global_semantic.weight: 0}, compare: paired_bootstrap}
"""


def test_axes_are_multiplied_and_every_combination_has_every_seed(grid):
    made = grid(ISSUE)
    assert len(made.cells) == 3 * 2 * 3
    assert made.axes == {"distiller": ("none", "faiss_kmeans", "lda"), "global_semantic.weight": ("0", "0.3")}
    assert [cell.seed for cell in made.cells[:4]] == [1, 2, 3, 1]
    last = made.cells[-1]
    assert last.title == "distiller=lda, global_semantic.weight=0.3, seed 3"
    recipe = last.recipe
    assert (recipe.distiller.name, recipe.losses["global_semantic"].weight, recipe.train.seed) == ("lda", 0.3, 3)
    assert made.baseline == "distiller=none, global_semantic.weight=0"


def test_a_cell_is_the_recipe_that_overrides_would_make(grid):
    cell = grid("axes: {optimizer.lr: [0.01]}\nseeds: [7]").cells[0]
    assert cell.digest == recipe_hash(load_recipe("smoke", ["optimizer.lr=0.01", "train.seed=7"]))


def test_editing_a_grid_keeps_the_identity_of_its_cells(grid):
    before = {cell.title: cell.digest for cell in grid("axes: {distiller.topics: [3, 4]}\nseeds: [1, 2]").cells}
    after = {cell.title: cell.digest for cell in grid("axes: {distiller.topics: [5, 4, 3]}\nseeds: [9, 2, 1]").cells}
    assert len(after) == 9 and before.items() <= after.items()


def test_without_topics_the_terms_that_need_them_are_off_and_it_is_said(grid):
    made = grid("axes: {distiller: [none, faiss_kmeans]}")
    assert [cell.recipe.losses["topic"].weight for cell in made.cells] == [0, 0.3]
    assert made.notices == ("losses.topic is off where the distiller is none: it needs topics",)


def test_a_term_that_the_cell_itself_asks_for_is_not_taken_away(mistakes):
    lines = mistakes("axes: {distiller: [none, lda], losses.topic.weight: [0.5]}")
    assert len(lines) == 1 and "needs topics, but distiller is none" in lines[0]
    assert lines[0].endswith("(in distiller=none, topic.weight=0.5)")


def test_zipped_axes_go_together(grid):
    made = grid("zip: {model.decoder.width: [64, 32], model.decoder.heads: [4, 2]}\naxes: {optimizer.lr: [0.1, 0.2]}")
    shapes = [(c.recipe.model.decoder.keys["width"], c.recipe.model.decoder.keys["heads"]) for c in made.cells]
    assert shapes == [(64, 4), (32, 2), (64, 4), (32, 2)]
    assert made.cells[0].settings == {"lr": "0.1", "decoder.width": "64", "decoder.heads": "4"}


def test_ablate_changes_one_thing_at_a_time(grid):
    made = grid("ablate:\n  no topics: {distiller: none}\n  no comparison: {losses.global_semantic.weight: 0}")
    assert list(rows_of(made.cells)) == ["baseline", "no topics", "no comparison"] and made.baseline == "baseline"
    assert made.cells[0].digest == recipe_hash(load_recipe("smoke"))


def test_an_axis_under_a_name_of_its_own_sets_several_keys(grid):
    made = grid(
        "axes:\n  guidance:\n    plain: {losses.topic.weight: 0, losses.global_semantic.weight: 0}\n    full: {}\nseeds: [1]"
    )
    assert list(rows_of(made.cells)) == ["plain", "full"] and made.axes == {"guidance": ("plain", "full")}
    assert {cell.label: sorted(cell.recipe.active_losses) for cell in made.cells} == {
        "plain": ["next_token"],
        "full": ["global_semantic", "next_token", "topic"],
    }


def test_labels_stand_for_values(grid):
    made = grid("axes: {optimizer.lr: {slow: 0.001, fast: 0.1}}\nexclude: [{lr: slow}]")
    assert [(cell.label, cell.recipe.optimizer.lr) for cell in made.cells] == [("fast", 0.1)]


def test_plugins_of_one_name_are_told_apart_by_the_keys_that_differ(grid):
    made = grid("axes: {distiller: [{name: lda, topics: 3}, {name: lda, topics: 4}, faiss_kmeans]}")
    assert made.axes["distiller"] == ("lda topics=3", "lda topics=4", "faiss_kmeans")


def test_axes_that_end_alike_keep_their_whole_keys(grid):
    made = grid("axes: {losses.topic.weight: [0.1], model.decoder.width: [64], model.encoder.width: [32]}")
    assert list(made.axes) == ["topic.weight", "decoder.width", "encoder.width"]


def test_excluded_combinations_are_left_out_by_label_value_or_list(grid):
    axes = "axes: {distiller: [{name: none}, {name: lda, topics: 3}], optimizer.lr: [0.1, 0.2, 0.3]}\n"
    assert len(grid(axes + "exclude: [{distiller: {name: lda, topics: 3}, lr: [0.1, 0.2]}]").cells) == 4
    assert len(grid(axes + "exclude: [{distiller: none}, {optimizer.lr: 0.3}]").cells) == 2


def test_what_python_holds_equal_is_not_excluded(grid):
    made = grid("axes: {evaluate.no_repeat_ngram_size: [0, 1]}\nexclude: [{no_repeat_ngram_size: 1}]")
    assert list(rows_of(made.cells)) == ["no_repeat_ngram_size=0"]
    with pytest.raises(RecipeError, match="no combination is like that"):
        grid("axes: {evaluate.no_repeat_ngram_size: [0, 1]}\nexclude: [{no_repeat_ngram_size: true}]")


def test_random_trials_that_compute_the_same_are_refused(mistakes):
    keys = "{data.num_workers: [0, 1], optimizer.lr: [0.1, 0.2]}"
    assert "compute the same" in mistakes(f"search: {{method: random, trials: 4, keys: {keys}}}")[0]


def test_included_cells_stand_beside_the_combinations(grid):
    made = grid(
        "axes: {distiller.topics: [3, 4]}\ninclude: [{label: all of it, distiller.topics: 4, optimizer.lr: 0.1}]"
    )
    last = made.cells[-1]
    assert (last.label, last.settings, last.recipe.optimizer.lr) == (
        "all of it",
        {"topics": "4", "include": "all of it"},
        0.1,
    )


def test_set_and_overrides_hold_in_every_cell(grid):
    made = grid("set: {train.epochs: 2}\naxes: {optimizer.lr: [0.1, 0.2]}", "train.batch_size=4")
    assert {(cell.recipe.train.epochs, cell.recipe.train.batch_size) for cell in made.cells} == {(2, 4)}


def test_a_section_may_be_an_axis_over_files(grid):
    made = grid("axes: {data: [phantom_breast, phantom_liver]}", recipe="shipped:breast")
    assert [cell.recipe.data.dataset.keys["organ"] for cell in made.cells] == ["breast", "liver"]


def test_without_seeds_the_recipes_own_counts(grid):
    assert [cell.seed for cell in grid("axes: {optimizer.lr: [0.1]}").cells] == [9233]


def test_a_grid_of_seeds_alone_has_one_row(grid):
    made = grid("seeds: [1, 2]")
    assert list(rows_of(made.cells)) == ["smoke"] and made.baseline is None


def test_a_search_may_go_over_the_recipes_own_values(grid):
    keys = "optimizer.lr: {low: 0.005, high: 0.01}, train.batch_size: {low: 8, high: 16}"
    assert len(grid(f"search: {{trials: 5, keys: {{{keys}}}}}").cells) == 5


MISTAKES = {
    "axis: {a: [1]}": "g.yaml:2:1: axis: unknown key. Did you mean 'axes'? Known: recipe, set, axes, zip, ablate, "
    "exclude, include, seeds, search, report, plugins, executor, attempts",
    "train.epochs: 3": "g.yaml:2:1: train.epochs: unknown key. Known: recipe, set, axes, zip, ablate, exclude, include, "
    "seeds, search, report, plugins, executor, attempts. A key of the recipe stands in axes or set",
    "axes: {distiler: [lda]}": "g.yaml:2:8: axes.distiler: no key of a recipe. Did you mean 'distiller'? Under a name of "
    "its own, an axis has labels, and what keys each sets: {label: {distiller.topics: 5, ...}}",
    "axes: {distiller.topics: []}": "g.yaml:2:8: axes.distiller.topics: found no values, expected a list of them, or "
    "labels and values",
    "axes: {distiller.topics: [3, 3]}": "g.yaml:2:8: axes.distiller.topics: 3 stands 2 times",
    "axes: {optimizer.lr: 0.1}": "g.yaml:2:8: axes.optimizer.lr: found 0.1, expected a list or a mapping (key: value)",
    "axes: {distiller.topics: [3, many]}": "g.yaml:2:30: distiller.topics: found the text 'many', expected a whole number "
    "or 'auto' (in topics=many)",
    "axes: {model.encoder.depht: [1]}": "g.yaml:2:30: model.encoder.depht: unknown key.",
    "axes: {run.root: [a]}": "g.yaml:2:19: run.root: a grid's cells do not differ in run; set it in the recipe",
    "axes: {data.num_workers: [0, 2]}": "g.yaml: 'workers=0, seed 9233' and 'workers=2, seed 9233' compute the same: what they "
    "differ in has no effect on a result. Exclude one of them",
    "zip: {optimizer.lr: [1, 2], train.epochs: [1]}": "g.yaml:2:1: zip: found 2 of optimizer.lr, 1 of train.epochs; "
    "expected as many values of each",
    "axes: {optimizer.lr: [1]}\nexclude: [{lrr: 1}]": "g.yaml:3:12: exclude.0.lrr: no axis of this grid. Did you mean 'lr'? "
    "Its axes: lr",
    "axes: {optimizer.lr: [1]}\nexclude: [{lr: 2}]": "g.yaml:3:11: exclude.0: no combination is like that; take it out, or "
    "mend it",
    "axes: {optimizer.lr: [1]}\nexclude: [{lr: 1}]": "g.yaml: every combination is excluded, so no cell is left",
    "include: [{optimizer.lr: 1}]": "g.yaml:2:11: include.0: needs label: a text that its row is called by",
    "ablate: {baseline: {train.epochs: 1}}": "g.yaml:2:10: ablate.baseline: that is the recipe as it is; take it out",
    "axes: {optimizer.lr: [1, 2]}\nreport: {baseline: lr=3}": "g.yaml:3:10: report.baseline: no row is called 'lr=3'. Did "
    "you mean 'lr=2'? Rows: lr=1; lr=2",
    "axes: {optimizer.lr: [1, 2]}\nreport: {baseline: {lr: [1, 2]}}": "g.yaml:3:10: report.baseline: expected one row that "
    "is like that, found lr=1; lr=2. Rows: lr=1; lr=2",
    "axes: {train.seed: [1, 2]}\nseeds: [3]": "g.yaml:2:24: train.seed: seeds are given as well, and would hide it; take one of them out",
    "seeds: [1, 1]": "g.yaml:2:12: seeds: 1 stands twice",
    "set: {train.seed: 5}\nseeds: [1]": "g.yaml:2:7: train.seed: seeds are given as well, and would hide it",
    "set: {optimizer.lr: 5}\naxes: {optimizer.lr: [1]}": "g.yaml:2:7: set.optimizer.lr: is an axis as well, which would hide it",
    "axes: {"
    + ", ".join(f"losses.x{n}.weight: [0, 1, 2, 3]" for n in range(9))
    + "}": "g.yaml: 262,144 cells, expected at most 10,000",
    "seeds: [-1]": "g.yaml:2:9: seeds.0: found -1, expected at least 0",
    "executor: {name: lokal}": "g.yaml:2:1: executor: Unknown executor 'lokal'. Did you mean 'local'? Known: local, ray, slurm",
    "executor: {name: local, processes: 0}": "g.yaml:2:1: executor.processes: found 0, expected a number above 0",
    "executor: {name: local, gpu: 2}": "g.yaml:2:1: executor.gpu: unknown key. Known: processes",
    "executor: {processes: 2}": "g.yaml:2:1: executor: needs name, such as {name: local}",
    "attempts: 0": "g.yaml:2:1: attempts: found 0, expected a number above 0",
    "report: {metrics: [test/bleu_5]}": "g.yaml:2:20: report.metrics.0: no metric of the recipe gives 'bleu_5'. Did you mean 'bleu_4'? Known: test/bleu_1",
    "report: {metrics: [test/cider, bleu_4]}": "g.yaml:2:32: report.metrics.1: found 'bleu_4', expected test/<score> or val/<score>",
    "report: {compare: t_test}": "g.yaml:2:10: report.compare: found the text 't_test', expected 'paired_bootstrap' or "
    "'none'",
    "axes: {optimizer.lr: [&x 1]}": "g.yaml:2:23: anchors (&x, *x) are not read in a recipe",
}


SEARCH = "search: {{method: tpe, trials: 20, keys: {{optimizer.lr: {{low: 0.001, high: 0.1}}}}{}}}"
MISTAKES |= {
    SEARCH.format("")
    + "\naxes: {distiller.topics: [3]}": "g.yaml:3:1: axes: a search has its keys in search.keys; take axes out",
    SEARCH.format("")
    + "\nseeds: [1, 2]": "g.yaml:3:1: seeds: a search trains each trial once; expected one seed at most",
    SEARCH.format(", monitor: test/bleu_4"): "g.yaml:2:82: search.monitor: found 'test/bleu_4', expected val/<score>",
    SEARCH.format(", prune: {}").replace(
        "tpe", "random"
    ): "g.yaml:2:85: search.prune: is for method: tpe, which hears of validations",
    SEARCH.format("").replace(
        "low: 0.001", "low: 1"
    ): "g.yaml:2:42: search.keys.optimizer.lr: low: 1 is not below high: 0.1",
    SEARCH.format("").replace("optimizer.lr", "optimizer.rate"): "g.yaml:2:42: optimizer.rate: unknown key.",
    SEARCH.format("").replace(
        "0.001", "-1"
    ): "g.yaml:2:42: optimizer.lr: found -1, expected a number above 0 (in lr=-1)",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_with_its_place(mistakes, text):
    lines = mistakes(text)
    assert len(lines) == 1 and lines[0].startswith(MISTAKES[text]), lines


def test_all_mistakes_of_all_cells_are_told_at_once(mistakes):
    lines = mistakes("axes: {distiller.topics: [-1, 3], optimizer.lr: [-2, 0.1]}")
    assert len(lines) == 2 and "distiller.topics: found -1" in lines[0] and "optimizer.lr: found -2" in lines[1]
    assert lines[0].endswith("(in topics=-1, lr=-2; topics=-1, lr=0.1)")


def test_an_override_that_the_grid_would_hide_is_refused(mistakes):
    assert mistakes("axes: {optimizer.lr: [0.1]}", "optimizer.lr=3") == [
        "override: optimizer.lr=3: the grid sets optimizer.lr in its cells, so this would have no effect"
    ]
    assert "the grid sets train.seed" in mistakes("seeds: [1]", "train.seed=3")[0]


def test_a_recipe_that_is_not_there_is_told_with_the_nearest(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("_base_: shipped:smoke\n")
    path = tmp_path / "g.yaml"
    path.write_text("recipe: mien.yaml\n")
    with pytest.raises(RecipeError, match=r"g.yaml:1:1: recipe: no such file: .*mien.yaml. Did you mean 'mine.yaml'\?"):
        read_grid(path)


def test_a_grid_that_is_not_there_is_told_with_the_shipped_ones():
    with pytest.raises(RecipeError, match=r"smok: no such grid file. Did you mean 'smoke'\? Shipped: .*smoke"):
        find_grid("smok")


@pytest.mark.parametrize("name", shipped_grids())
def test_every_shipped_grid_is_good(name):
    grid = make_grid(read_grid(find_grid(name)))
    assert len(rows_of(grid.cells)) > 1 and grid.baseline
    head = grid.read.path.read_text(encoding="utf-8")
    assert all(word in head for word in ("# Tried: ", "# Costs: ", "# Expect: "))
