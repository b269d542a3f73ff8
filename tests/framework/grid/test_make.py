"""A grid file becomes cells: their recipes, their labels, and the problems of a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import problem

from framework.grid.cells import cells_by_row
from framework.grid.file import find_grid, read_grid, shipped_grids
from framework.grid.make import Grid, make_grid
from framework.recipe import load_recipe, recipe_hash
from framework.runtime.errors import Problem, UserError


@pytest.fixture
def grid(tmp_path: Path):
    """Makes the grid of a text."""

    def made(text: str, *overrides: str, recipe: str = "shipped:smoke") -> Grid:
        path = tmp_path / "g.yaml"
        path.write_text(f"recipe: {recipe}\n{text}", encoding="utf-8")
        return make_grid(read_grid(path), overrides)

    return made


@pytest.fixture
def problems(grid):
    """The problems that a text is refused with."""

    def found(text: str, *overrides: str) -> list[Problem]:
        with pytest.raises(UserError) as refused:
            grid(text, *overrides)
        return list(refused.value.problems)

    return found


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


def test_without_topics_the_losses_that_need_them_are_off_with_a_notice(grid):
    made = grid("axes: {distiller: [none, faiss_kmeans]}")
    assert [cell.recipe.losses["topic"].weight for cell in made.cells] == [0, 0.3]
    assert made.notices == ("losses.topic is off where the distiller is none: it needs topics",)


def test_a_loss_that_the_cell_itself_sets_is_not_disabled(problems):
    (found,) = problems("axes: {distiller: [none, lda], losses.topic.weight: [0.5]}")
    assert found.hint.endswith("In distiller=none, topic.weight=0.5")


def test_zipped_axes_go_together(grid):
    made = grid("zip: {model.decoder.width: [64, 32], model.decoder.heads: [4, 2]}\naxes: {optimizer.lr: [0.1, 0.2]}")
    shapes = [(c.recipe.model.decoder.keys["width"], c.recipe.model.decoder.keys["heads"]) for c in made.cells]
    assert shapes == [(64, 4), (32, 2), (64, 4), (32, 2)]
    assert made.cells[0].settings == {"lr": "0.1", "decoder.width": "64", "decoder.heads": "4"}


def test_ablate_changes_one_thing_at_a_time(grid):
    made = grid("ablate:\n  no topics: {distiller: none}\n  no comparison: {losses.global_semantic.weight: 0}")
    assert list(cells_by_row(made.cells)) == ["baseline", "no topics", "no comparison"] and made.baseline == "baseline"
    assert made.cells[0].digest == recipe_hash(load_recipe("smoke"))


def test_a_named_axis_sets_several_keys(grid):
    made = grid(
        "axes:\n  guidance:\n    plain: {losses.topic.weight: 0, losses.global_semantic.weight: 0}\n    full: {}\n"
        "seeds: [1]"
    )
    assert list(cells_by_row(made.cells)) == ["plain", "full"] and made.axes == {"guidance": ("plain", "full")}
    assert {cell.label: sorted(cell.recipe.active_losses) for cell in made.cells} == {
        "plain": ["next_token"],
        "full": ["global_semantic", "next_token", "topic"],
    }


def test_labels_stand_for_values(grid):
    made = grid("axes: {optimizer.lr: {slow: 0.001, fast: 0.1}}\nexclude: [{lr: slow}]")
    assert [(cell.label, cell.recipe.optimizer.lr) for cell in made.cells] == [("fast", 0.1)]


def test_plugins_of_one_name_have_the_keys_that_differ_in_their_labels(grid):
    made = grid("axes: {distiller: [{name: lda, topics: 3}, {name: lda, topics: 4}, faiss_kmeans]}")
    assert made.axes["distiller"] == ("lda topics=3", "lda topics=4", "faiss_kmeans")


def test_axes_with_the_same_last_part_are_labelled_by_their_full_keys(grid):
    made = grid("axes: {losses.topic.weight: [0.1], model.decoder.width: [64], model.encoder.width: [32]}")
    assert list(made.axes) == ["topic.weight", "decoder.width", "encoder.width"]


def test_excluded_combinations_are_left_out_by_label_value_or_list(grid):
    axes = "axes: {distiller: [{name: none}, {name: lda, topics: 3}], optimizer.lr: [0.1, 0.2, 0.3]}\n"
    assert len(grid(axes + "exclude: [{distiller: {name: lda, topics: 3}, lr: [0.1, 0.2]}]").cells) == 4
    assert len(grid(axes + "exclude: [{distiller: none}, {optimizer.lr: 0.3}]").cells) == 2


def test_true_does_not_exclude_1(grid):
    made = grid("axes: {evaluate.no_repeat_ngram_size: [0, 1]}\nexclude: [{no_repeat_ngram_size: 1}]")
    assert list(cells_by_row(made.cells)) == ["no_repeat_ngram_size=0"]
    with problem("ignored-setting", place="exclude.0"):
        grid("axes: {evaluate.no_repeat_ngram_size: [0, 1]}\nexclude: [{no_repeat_ngram_size: true}]")


def test_random_trials_that_compute_the_same_are_refused(problems):
    keys = "{data.num_workers: [0, 1], optimizer.lr: [0.1, 0.2]}"
    (found,) = problems(f"search: {{method: random, trials: 4, keys: {keys}}}")
    assert found.code == "ignored-setting" and "lr=" in found.found


def test_included_cells_follow_the_combinations(grid):
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


def test_an_axis_may_list_files_of_a_section(grid):
    made = grid("axes: {data: [phantom_breast, phantom_liver]}", recipe="shipped:breast")
    assert [cell.recipe.data.dataset.keys["organ"] for cell in made.cells] == ["breast", "liver"]


def test_a_grid_without_seeds_uses_the_seed_of_the_recipe(grid):
    assert [cell.seed for cell in grid("axes: {optimizer.lr: [0.1]}").cells] == [9233]


def test_a_grid_of_seeds_alone_has_one_row(grid):
    made = grid("seeds: [1, 2]")
    assert list(cells_by_row(made.cells)) == ["smoke"] and made.baseline is None


def test_a_search_may_include_the_values_of_the_recipe(grid):
    keys = "optimizer.lr: {low: 0.005, high: 0.01}, train.batch_size: {low: 8, high: 16}"
    assert len(grid(f"search: {{trials: 5, keys: {{{keys}}}}}").cells) == 5


SEARCH = "search: {method: tpe, trials: 20, keys: {optimizer.lr: {low: 0.001, high: 0.1}}"
NINE_AXES = ", ".join(f"losses.x{n}.weight: [0, 1, 2, 3]" for n in range(9))
MISTAKES = [
    ("axis: {a: [1]}", "unknown-key", "g.yaml:2:1: axis"),
    ("train.epochs: 3", "unknown-key", "g.yaml:2:1: train.epochs"),
    ("axes: {distiler: [lda]}", "unknown-key", "g.yaml:2:8: axes.distiler"),
    ("axes: {distiller.topics: []}", "missing-key", "g.yaml:2:8: axes.distiller.topics"),
    ("axes: {distiller.topics: [3, 3]}", "duplicate-name", "g.yaml:2:8: axes.distiller.topics"),
    ("axes: {optimizer.lr: 0.1}", "wrong-type", "g.yaml:2:8: axes.optimizer.lr"),
    ("axes: {distiller.topics: [3, many]}", "wrong-type", "g.yaml:2:30: distiller.topics"),
    ("axes: {model.encoder.depht: [1]}", "unknown-key", "g.yaml:2:30: model.encoder.depht"),
    ("axes: {run.root: [a]}", "unsupported", "g.yaml:2:19: run.root"),
    ("axes: {data.num_workers: [0, 2]}", "ignored-setting", "g.yaml"),
    ("zip: {optimizer.lr: [1, 2], train.epochs: [1]}", "does-not-fit", "g.yaml:2:1: zip"),
    ("axes: {optimizer.lr: [1]}\nzip: {optimizer.lr: [1]}", "conflicting-settings", "g.yaml:3:7: zip.optimizer.lr"),
    ("axes: {optimizer.lr: [1]}\nexclude: [{lrr: 1}]", "unknown-name", "g.yaml:3:12: exclude.0.lrr"),
    ("axes: {optimizer.lr: [1]}\nexclude: [{lr: 2}]", "ignored-setting", "g.yaml:3:11: exclude.0"),
    ("axes: {optimizer.lr: [1]}\nexclude: [{lr: 1}]", "conflicting-settings", "g.yaml"),
    ("include: [{optimizer.lr: 1}]", "missing-key", "g.yaml:2:11: include.0"),
    ("ablate: {baseline: {train.epochs: 1}}", "duplicate-name", "g.yaml:2:10: ablate.baseline"),
    ("axes: {optimizer.lr: [1, 2]}\nreport: {baseline: lr=3}", "unknown-name", "g.yaml:3:10: report.baseline"),
    ("axes: {optimizer.lr: [1, 2]}\nreport: {baseline: {lr: [1, 2]}}", "unknown-name", "g.yaml:3:10: report.baseline"),
    ("axes: {train.seed: [1, 2]}\nseeds: [3]", "conflicting-settings", "g.yaml:2:24: train.seed"),
    ("seeds: [1, 1]", "duplicate-name", "g.yaml:2:12: seeds.1"),
    ("set: {train.seed: 5}\nseeds: [1]", "conflicting-settings", "g.yaml:2:7: train.seed"),
    ("set: {optimizer.lr: 5}\naxes: {optimizer.lr: [1]}", "conflicting-settings", "g.yaml:2:7: set.optimizer.lr"),
    (f"axes: {{{NINE_AXES}}}", "out-of-range", "g.yaml"),
    ("seeds: [-1]", "out-of-range", "g.yaml:2:9: seeds.0"),
    ("executor: {name: lokal}", "unknown-name", "g.yaml:2:1: executor"),
    ("executor: {name: local, processes: 0}", "out-of-range", "g.yaml:2:1: executor.processes"),
    ("executor: {name: local, gpu: 2}", "unknown-key", "g.yaml:2:1: executor.gpu"),
    ("executor: {processes: 2}", "missing-key", "g.yaml:2:1: executor"),
    ("attempts: 0", "out-of-range", "g.yaml:2:1: attempts"),
    ("report: {metrics: [test/bleu_5]}", "unknown-name", "g.yaml:2:20: report.metrics.0"),
    ("report: {metrics: [test/cider, bleu_4]}", "unknown-name", "g.yaml:2:32: report.metrics.1"),
    ("report: {compare: t_test}", "unknown-name", "g.yaml:2:10: report.compare"),
    ("axes: {optimizer.lr: [&x 1]}", "invalid-yaml", "g.yaml:2:23"),
    (f"{SEARCH}}}\naxes: {{distiller.topics: [3]}}", "conflicting-settings", "g.yaml:3:1: axes"),
    (f"{SEARCH}}}\nseeds: [1, 2]", "conflicting-settings", "g.yaml:3:1: seeds"),
    (f"{SEARCH}}}\nreport: {{baseline: a}}", "ignored-setting", "g.yaml:3:10: report.baseline"),
    (f"{SEARCH}, monitor: test/bleu_4}}", "unknown-name", "g.yaml:2:82: search.monitor"),
    (f"{SEARCH}, prune: {{}}}}".replace("tpe", "random"), "ignored-setting", "g.yaml:2:85: search.prune"),
    (f"{SEARCH}}}".replace("low: 0.001", "low: 1"), "out-of-range", "g.yaml:2:42: search.keys.optimizer.lr"),
    (f"{SEARCH}}}".replace("optimizer.lr", "optimizer.rate"), "unknown-key", "g.yaml:2:42: optimizer.rate"),
    (f"{SEARCH}}}".replace("0.001", "-1"), "out-of-range", "g.yaml:2:42: optimizer.lr"),
]


@pytest.mark.parametrize(("text", "code", "place"), MISTAKES)
def test_a_mistake_has_a_code_and_a_place(problems, text, code, place):
    (found,) = problems(text)
    assert (found.code, re.sub(r"^\S*/g\.yaml", "g.yaml", found.place)) == (code, place)


def test_a_key_of_the_recipe_at_the_top_of_a_grid_is_explained(problems):
    assert "axes or set" in problems("train.epochs: 3")[0].hint


def test_all_mistakes_of_all_cells_are_reported_at_once(problems):
    topics, rate = problems("axes: {distiller.topics: [-1, 3], optimizer.lr: [-2, 0.1]}")
    assert topics.place.endswith("distiller.topics") and rate.place.endswith("optimizer.lr")
    assert topics.hint.endswith("In topics=-1, lr=-2; topics=-1, lr=0.1")


@pytest.mark.parametrize(
    ("text", "override"), [("axes: {optimizer.lr: [0.1]}", "optimizer.lr=3"), ("seeds: [1]", "train.seed=3")]
)
def test_an_override_that_the_cells_override_is_refused(problems, text, override):
    (found,) = problems(text, override)
    assert (found.code, found.place) == ("ignored-setting", f"override: {override}")


def test_a_recipe_that_does_not_exist_is_refused(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("_base_: shipped:smoke\n")
    path = tmp_path / "g.yaml"
    path.write_text("recipe: mien.yaml\n")
    with problem("no-such-file", place="g.yaml:1:1: recipe") as found:
        read_grid(path)
    assert "mine.yaml" in found[0].hint


def test_a_grid_that_does_not_exist_is_refused():
    with problem("no-such-file", place="smok") as found:
        find_grid("smok")
    assert "'smoke'" in found[0].hint


@pytest.mark.parametrize("name", shipped_grids())
def test_every_shipped_grid_is_valid(name):
    grid = make_grid(read_grid(find_grid(name)))
    assert len(cells_by_row(grid.cells)) > 1 and grid.baseline
    head = grid.file.path.read_text(encoding="utf-8")
    assert all(word in head for word in ("# Time: ", "# Expect: "))
