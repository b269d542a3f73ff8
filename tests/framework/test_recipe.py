"""Recipes: what they mean, in which order values win, and what is said about each mistake."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.recipe import RECIPES, RecipeError, explain_rows, load_recipe, recipe_hash, save, where_from
from framework.recipe.source import Loader

TOYS = Path(__file__).parent / "toys.py"
GOOD = f"""plugins: [{TOYS}]
data:
  dataset: {{name: toy_exams, organ: liver}}
distiller: {{name: toy_sorter}}
model:
  encoder: {{name: toy_eyes}}
  decoder: {{name: toy_pen}}
losses:
  toy_words: {{weight: 1.0}}
evaluate: {{metrics: [toy_score], monitor: val/toy_1}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text=GOOD, name="r.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def mistakes(path, *overrides):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return list(error.value.lines)


ENCODER_KEYS = "width, sizes, words, options, cut, deep, model_config"

# (replaced in GOOD, replacement, what is said); the last line of a `...` says how a line goes on.
IN_FILE = {
    "unknown key of a plugin": (
        "name: toy_eyes",
        "name: toy_eyes, wdth: 3",
        f"r.yaml:6: model.encoder.wdth: unknown key. Did you mean 'width'? Known: {ENCODER_KEYS}",
    ),
    "text for a number": (
        "name: toy_eyes",
        "name: toy_eyes, width: many",
        "r.yaml:6: model.encoder.width: found the text 'many', expected a whole number",
    ),
    "number in quotes": (
        "weight: 1.0",
        "weight: '1e-4'",
        "r.yaml:9: losses.toy_words.weight: found the text '1e-4', expected a number; take the quotes away",
    ),
    "number too small": (
        "name: toy_eyes",
        "name: toy_eyes, width: 0",
        "r.yaml:6: model.encoder.width: found 0, expected a number above 0",
    ),
    "broken number for a whole one": (
        "name: toy_eyes",
        "name: toy_eyes, width: 2.5",
        "r.yaml:6: model.encoder.width: found 2.5, expected a whole number",
    ),
    "no is not false": (
        "name: toy_eyes",
        "name: toy_eyes, deep: no",
        "r.yaml:6: model.encoder.deep: found the text 'no', expected true or false",
    ),
    "fraction too large": (
        "name: toy_pen",
        "name: toy_pen, dropout: 1.5",
        "r.yaml:7: model.decoder.dropout: found 1.5, expected at most 1",
    ),
    "not a number": (
        "weight: 1.0",
        "weight: .nan",
        "r.yaml:9: losses.toy_words.weight: found NaN, expected a finite number",
    ),
    "item of a list": (
        "name: toy_eyes",
        "name: toy_eyes, sizes: [1, x]",
        "r.yaml:6: model.encoder.sizes.1: found the text 'x', expected a whole number",
    ),
    "a word that is no choice": (
        "organ: liver",
        "organ: brest",
        "r.yaml:3: data.dataset.organ: found the text 'brest', expected 'breast' or 'liver'. Did you mean 'breast'?",
    ),
    "unknown plugin": (
        "name: toy_eyes",
        "name: toy_eye",
        "r.yaml:6: model.encoder.name: Unknown encoder 'toy_eye'. Did",
    ),
    "unknown loss": (
        "toy_words:",
        "toy_word:",
        "r.yaml:9: losses.toy_word: Unknown loss 'toy_word'. Did you mean 'toy_",
    ),
    "plugin without a name": (
        "{name: toy_eyes}",
        "{width: 3}",
        "r.yaml:6: model.encoder.name: is missing. Known: ",
    ),
    "missing key of a plugin": (
        "{name: toy_eyes}",
        "{name: other_eyes}",
        "r.yaml:6: model.encoder.height: is missing, expected int",
    ),
    "run-time value": (
        "name: toy_pen",
        "name: toy_pen, vocabulary_size: 9",
        "r.yaml:7: model.decoder.vocabulary_size: only the run knows this value and hands it over; take it out",
    ),
    "list for a plugin": (
        "{name: toy_eyes}",
        "[toy_eyes]",
        'r.yaml:6: model.encoder: found ["toy_eyes"], expected a enco',
    ),
    "unknown section": (
        "evaluate:",
        "traim: {epochs: 3}\nevaluate:",
        "r.yaml:10: traim: unknown key. Did you mean 'train'?",
    ),
    "key of another section": (
        "evaluate:",
        "batch_size: 3\nevaluate:",
        "r.yaml:10: batch_size: unknown key here; it belongs in train or evaluate",
    ),
    "unknown key of a section": (
        "evaluate:",
        "train: {epoch: 3}\nevaluate:",
        "r.yaml:10: train.epoch: unknown key. Did you mean 'epochs'? Known: epochs, batch_size, micro_batch, ",
    ),
    "section is no mapping": (
        "evaluate:",
        "train: 3\nevaluate:",
        "r.yaml:10: train: found 3, expected a mapping (key: value)",
    ),
    "missing section": (
        "model:\n  encoder: {name: toy_eyes}\n  decoder: {name: toy_pen}\n",
        "",
        "r.yaml: model: is missing, expected a mapping of encoder, decoder",
    ),
    "missing plugin": (
        "  encoder: {name: toy_eyes}\n",
        "",
        "r.yaml:5: model.encoder: is missing, expected {name: ...}. Known:",
    ),
    "union of types": (
        "evaluate:",
        "train: {micro_batch: most}\nevaluate:",
        "r.yaml:10: train.micro_batch: found the text 'most', expected a whole number or 'auto'",
    ),
    "micro batch that does not fit": (
        "evaluate:",
        "train: {batch_size: 6, micro_batch: 4}\nevaluate:",
        "r.yaml:10: train.micro_batch: found 4, expected a divisor of train.batch_size = 6: 1, 2, 3, 6",
    ),
    "no loss": (
        "weight: 1.0",
        "weight: 0",
        "r.yaml:8: losses: no loss has a weight above 0, so there is nothing to learn",
    ),
    "negative weight": (
        "weight: 1.0",
        "weight: -1",
        "r.yaml:9: losses.toy_words.weight: found -1, expected at least 0",
    ),
    "topics without a distiller": (
        "distiller: {name: toy_sorter}",
        "distiller: none",
        None,
    ),
    "key of no distiller": (
        "distiller: {name: toy_sorter}",
        "distiller: {name: none, topics: 3}",
        "r.yaml:4: distiller.topics: the distiller 'none' has no keys",
    ),
    "monitor on test": (
        "val/toy_1",
        "test/toy_1",
        "r.yaml:10: evaluate.monitor: found 'test/toy_1', expected val/<score>: the best checkpoint is chosen on ",
    ),
    "monitor of no metric": (
        "val/toy_1",
        "val/toy_one",
        "r.yaml:10: evaluate.monitor: no chosen metric gives 'toy_one'. Did you mean 'toy_2'? "
        "Known: val/toy_1, val/toy_2",
    ),
    "monitor of a metric not chosen": (
        "val/toy_1",
        "val/other",
        "r.yaml:10: evaluate.monitor: no chosen metric gives 'other'. Metric 'toy_other' gives it: add it to "
        "evaluate.metrics. Known: val/toy_1, val/toy_2",
    ),
    "metric twice": (
        "[toy_score]",
        "[toy_score, toy_score]",
        "r.yaml:10: evaluate.metrics.1: 'toy_score' stands twice",
    ),
    "run name with a path": (
        "evaluate:",
        "run: {name: ../x}\nevaluate:",
        "r.yaml:10: run.name: found the text '../x', expected letters, digits, '.', '_', '-' and '+', no path",
    ),
    "duplicate key": (
        "name: toy_eyes",
        "name: toy_eyes, width: 1, width: 2",
        "r.yaml:6: model.encoder.width: stands twice, first in line 6",
    ),
    "tag": (
        "name: toy_pen",
        "name: !!python/name:os.system x",
        "r.yaml:7:19: tags are not read in a recipe, found tag:yaml.org,2002:python/name:os.system; write the pl",
    ),
    "alias": (
        "name: toy_pen",
        "name: &x toy_pen",
        "r.yaml:7:19: anchors (&x, *x) are not read in a recipe; write ${a.b}",
    ),
    "tab": ("  encoder:", "\tencoder:", "r.yaml:6:1: found a tab where YAML wants spaces; indent with spaces"),
    "key that is no text": ("evaluate:", "1: 2\nevaluate:", "r.yaml:10: top level: a key is a plain text, found '1'"),
    "reference in brackets": (
        "organ: liver",
        "organ: ${a.b}",
        "r.yaml:3:38: expected ',' or '}', but got '{'; inside { } or [ ] a reference stands in quotes: '${a.b}'",
    ),
    "bracket left open": ("{name: toy_pen}", "{name: toy_pen", "r.yaml:8:7: expected ',' or '}', but got ':'"),
    "environment": (
        "organ: liver",
        "organ: '${oc.env:HOME}'",
        "r.yaml:3: data.dataset.organ: found '${oc.env:HOME}', expected ${a.b} with the key of another value",
    ),
    "environment through a second reference": (
        "organ: liver",
        "organ: '${${evaluate.monitor}:HOME}'",
        "r.yaml:3: data.dataset.organ: found '${${evaluate.monitor}:HOME}', expected ${a.b} with the key of anothe",
    ),
    "reference to nothing": (
        "organ: liver",
        "organ: '${data.nothing}'",
        "r.yaml:3: data.dataset.organ: found '${data.nothing}', but the recipe does not set data.nothing (a default "
        "does not count)",
    ),
    "reference to itself": (
        "organ: liver",
        "organ: '${data.dataset.organ}'",
        "r.yaml:3: data.dataset.organ: found '${data.dataset.organ}', which leads back to itself",
    ),
    "reference to a block": (
        "organ: liver",
        "organ: '${model.encoder}'",
        "r.yaml:3: data.dataset.organ: found '${model.encoder}', which is a whole block; name a single value",
    ),
    "base that is not there": (
        "data:\n",
        "_base_: q.yaml\ndata:\n",
        "r.yaml:2: _base_: no such file: q.yaml. Did you mean 'r.yaml'?",
    ),
    "base of itself": ("data:\n", "_base_: r.yaml\ndata:\n", "r.yaml: based on itself: r.yaml -> r.yaml"),
    "base of a wrong type": (
        "data:\n",
        "_base_: {}\ndata:\n",
        "r.yaml:2: _base_: found {}, expected a path or a list of paths",
    ),
    "plugin file that is not there": (f"plugins: [{TOYS}]", "plugins: [t.py]", "t.py: no such plugin file"),
}


@pytest.mark.parametrize("case", [case for case, row in IN_FILE.items() if row[2]])
def test_a_mistake_is_told_with_its_place_and_what_was_expected(folder, case):
    old, new, said = IN_FILE[case]
    assert old in GOOD
    lines = mistakes(write(folder, GOOD.replace(old, new, 1)))
    assert len(lines) == 1, lines
    assert lines[0].startswith(said), lines


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=x", "override: train.epochs=x: found the text 'x', expected a whole number"),
        ("train.epochs", "override: train.epochs: expected key=value, such as train.epochs=3"),
        ("=3", "override: =3: expected key=value, such as train.epochs=3"),
        ("train.epochs=[1", "override: train.epochs=[1: value:1:3: expected ',' or ']', but got '<stream end>'"),
        ("model.encoder={zzzz: 3}", "override: model.encoder={zzzz: 3}: model.encoder.zzzz: unknown key. Known: "),
        ("_base_=x", "override: _base_=x: _base_ stands in a file; name another recipe instead"),
        (
            "run.root=${oc.env:HOME}",
            "override: run.root=${oc.env:HOME}: value:1: run.root: found '${oc.env:HOME}', expected",
        ),
        ("train.epochs=!!int 3", "override: train.epochs=!!int 3: value:1:1: tags are not read in a recipe"),
        ("losses=3", "override: losses=3: found 3, expected a mapping (key: value)"),
        ("evaluate.metrics.0=cider", "override: evaluate.metrics.0=cider: evaluate.metrics: found {"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(folder, override, said):
    lines = mistakes(write(folder), override)
    assert len(lines) == 1, lines
    assert lines[0].startswith(said), lines


def test_a_loss_that_needs_topics_asks_for_a_distiller(folder):
    text = GOOD.replace("distiller: {name: toy_sorter}", "distiller: none").replace(
        "losses:\n", "losses:\n  toy_topic: {}\n"
    )
    said = "r.yaml:9: losses.toy_topic: needs topics, but distiller is none; choose a distiller, or set its weight to 0"
    assert mistakes(write(folder, text)) == [said]
    assert "toy_topic" not in load_recipe(write(folder, text), ["losses.toy_topic.weight=0"]).active_losses


def test_all_mistakes_are_told_at_once(folder):
    path = write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, wdth: 3").replace("organ: liver", "organ: x"))
    assert len(mistakes(path, "train.epochs=x", "nothing=1")) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "r.yaml: empty, expected a recipe"),
        (b"# nothing\n", "r.yaml: empty, expected a recipe"),
        (b"- 1\n", "r.yaml:1: expected a mapping"),
        (b"a: 1\nb: \xff\n", "r.yaml:2: not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b"a: \x00\n", "r.yaml: unacceptable character #x0000"),
        (b"[" * 3000, "r.yaml:1:25: nested more than 24 levels deep"),
        (b"#" * 1_000_001, "r.yaml: larger than 1,000,000 bytes"),
        (b"a: 1\n---\nb: 2\n", "r.yaml:2:1: but found another document"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(folder, content, said):
    (folder / "r.yaml").write_bytes(content)
    (line,) = mistakes(folder / "r.yaml")
    assert line.startswith(said)


def test_a_folder_and_a_missing_file_say_so(folder):
    assert mistakes(folder) == [f"{folder}: a folder, expected a recipe file (.yaml)"]
    assert mistakes("brest")[0].startswith("brest: no such recipe file. Did you mean 'breast'? Shipped: ")


def test_two_plugins_of_one_name_are_told_with_both_places(folder):
    (folder / "a.py").write_text(TOYS.read_text())
    (line,) = mistakes(write(folder), "plugins=[a.py]")
    assert line.startswith("Two datasets are named 'toy_exams': ") and "a.py" in line


def test_a_file_beats_its_base_and_an_override_beats_both(folder):
    write(folder, GOOD + "train: {epochs: 1, batch_size: 1, seed: 1}\n", "base.yaml")
    path = write(folder, "_base_: base.yaml\ntrain: {epochs: 2, batch_size: 2}\n")
    recipe = load_recipe(path, ["train.epochs=3", "train.epochs=4"])
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed, recipe.train.clip) == (4, 2, 1, 1.0)
    assert recipe.origins["train.epochs"] == "override: train.epochs=4"
    assert recipe.origins["train.batch_size"] == "r.yaml:2"
    assert recipe.origins["train.seed"] == "base.yaml:11"


def test_later_bases_win_and_a_shared_base_is_read_once(folder):
    write(folder, GOOD + "train: {epochs: 1, seed: 1}\n", "root.yaml")
    write(folder, "_base_: root.yaml\ntrain: {epochs: 2}\n", "a.yaml")
    write(folder, "_base_: root.yaml\ntrain: {batch_size: 3}\n", "b.yaml")
    train = load_recipe(write(folder, "_base_: [a.yaml, b.yaml]\n")).train
    assert (train.epochs, train.batch_size, train.seed) == (2, 3, 1)


def test_lists_are_replaced_and_null_takes_a_loss_out(folder):
    write(folder, GOOD.replace("losses:\n", "losses:\n  toy_topic: {}\n"), "base.yaml")
    recipe = load_recipe(
        write(folder, "_base_: base.yaml\nevaluate: {metrics: [toy_other, toy_score]}\nlosses: {toy_topic: }\n")
    )
    assert [m.name for m in recipe.evaluate.metrics] == ["toy_other", "toy_score"]
    assert list(recipe.losses) == ["toy_words"]


def test_another_plugin_drops_the_keys_of_the_one_before_and_says_so(folder):
    write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, width: 9, deep: true"), "base.yaml")
    path = write(folder, "_base_: base.yaml\n")
    recipe = load_recipe(path, ["model.encoder.height=2", "model.encoder.name=other_eyes"])
    assert recipe.model.encoder.keys == {"height": 2}
    (notice,) = recipe.notices
    assert notice.endswith("model.encoder: other_eyes in place of toy_eyes, whose keys were dropped: width, deep")
    assert "model.encoder.width" not in recipe.origins


def test_plugin_files_are_found_beside_the_recipe_that_names_them(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "mine.py").write_text(TOYS.read_text())
    write(folder, GOOD.replace(f"[{TOYS}]", "[mine.py]"), "deep/base.yaml")
    recipe = load_recipe(write(folder, "_base_: deep/base.yaml\n"))
    assert recipe.plugin_files == (folder / "deep" / "mine.py",)


def test_defaults_are_filled_in_from_the_signature(folder):
    keys = load_recipe(write(folder), ["model.encoder.sizes=[3]"]).model.encoder.keys
    assert keys == {
        "width": 4, "sizes": (3,), "words": ["a"], "options": {}, "cut": None, "deep": False, "model_config": None
    }  # fmt: skip


def test_scalars_mean_what_they_look_like(folder):
    text = "{a: 1e-4, b: 1_000, c: no, d: 010, e: 2024-01-01, f: 1:30, g: '1', h: ~, i: True, j: .5, k: 1e3, l: -.inf}"
    node = Loader(text).get_single_node()
    from framework.recipe.source import read_node

    assert read_node(node, (), "x", {}, []) == {
        "a": 0.0001, "b": 1000, "c": "no", "d": "010", "e": "2024-01-01", "f": "1:30", "g": "1", "h": None, "i": True,
        "j": 0.5, "k": 1000.0, "l": float("-inf"),
    }  # fmt: skip


def test_references_are_filled_in_through_each_other(folder):
    path = write(folder, GOOD + "run: {root: 'out-${data.dataset.organ}', name: '${run.root}-b'}\n")
    assert load_recipe(path).run.name == "out-liver-b"


def test_references_cannot_blow_up(folder):
    lines = ["a0: " + "x" * 100] + [f"a{i + 1}: '${{a{i}}}${{a{i}}}'" for i in range(60)]
    assert "grows beyond 10000 characters" in mistakes(write(folder, "\n".join(lines)))[0]


WORDS = st.text(max_size=12).filter(lambda text: "$" not in text and text.isprintable())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(WORDS, max_size=3),
    lr=st.floats(1e-12, 1e6),
    options=st.dictionaries(WORDS, st.floats(-1e9, 1e9), max_size=2),
    cache=st.one_of(
        WORDS, st.sampled_from(["1e4", "null", "no", "010", "~", "1:30", "- a", "a: b", "#", "0x1", "'", "???"])
    ),
)
def test_a_saved_recipe_loads_back_equal(folder, words, lr, options, cache):
    tree = yaml.safe_load(GOOD)
    tree["model"]["encoder"] |= {"words": words, "options": options}
    tree["optimizer"] = {"lr": lr}
    tree["data"]["cache"] = cache
    import json

    recipe = load_recipe(write(folder, json.dumps(tree, ensure_ascii=True)))
    assert (recipe.model.encoder.keys["words"], recipe.data.cache) == (words, cache)
    again = load_recipe(write(folder, save(recipe), "saved.yaml"))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert save(again) == save(recipe)


def test_the_hash_follows_the_result_and_nothing_else(folder):
    path = write(folder)
    same = ["run.name=x", "resume=auto", "data.cache=x", "data.workers=3"]
    assert recipe_hash(load_recipe(path, same)) == recipe_hash(load_recipe(path))
    for other in ["train.seed=1", "model.encoder.width=5", "losses.toy_words.weight=2", "data.image_size=64"]:
        assert recipe_hash(load_recipe(path, [other])) != recipe_hash(load_recipe(path))


def test_every_value_tells_where_it_comes_from(folder):
    recipe = load_recipe(write(folder), ["model.decoder.dropout=0"])
    assert where_from(recipe, "data.dataset.organ") == ("liver", "r.yaml:3")
    assert where_from(recipe, "model.decoder.dropout") == (0.0, "override: model.decoder.dropout=0")
    assert where_from(recipe, "train.epochs") == (10, "default of framework/recipe/schema.py")
    assert where_from(recipe, "model.encoder.width")[1].startswith("default of encoder/toy_eyes (")
    assert [row[0] for row in explain_rows(recipe, "data.dataset")][:2] == ["data.dataset.name", "data.dataset.organ"]
    with pytest.raises(RecipeError, match=r"Did you mean 'train\.epochs'"):
        where_from(recipe, "train.epoks")


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_good_and_load_by_name(path):
    name = str(path.relative_to(RECIPES).with_suffix(""))
    if name.startswith("base/"):
        with pytest.raises(RecipeError, match=r"^recipes/base/\w+\.yaml:\d+: data\.dataset: is missing[^\n]*$"):
            load_recipe(name)
    else:
        assert load_recipe(name) == load_recipe(path)
        assert path.read_text().startswith("# "), "the head comment says what is tried"
