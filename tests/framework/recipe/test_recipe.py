"""Recipes: which values win, where each comes from, and how recipes are saved, compared and copied."""

import json

import pytest
import yaml
from good_recipe import GOOD, TOYS
from harness import problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.recipe import RECIPES, RecipeError, load_recipe, recipe_hash, save
from framework.recipe.copying import copy_recipe
from framework.recipe.explain import diff_rows, explain, explain_rows
from framework.recipe.folders import require_folders
from framework.recipe.source import Loader, read_node, shipped_recipes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text=GOOD, name="r.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def problems(path, *overrides):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return list(error.value.problems)


def test_a_loss_without_weight_needs_nothing(folder):
    text = GOOD.replace("distiller: {name: toy_sorter}", "distiller: none").replace(
        "losses:\n", "losses:\n  toy_topic: {}\n"
    )
    assert "toy_topic" not in load_recipe(write(folder, text), ["losses.toy_topic.weight=0"]).active_losses


def test_all_problems_are_reported_at_once(folder):
    path = write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, wdth: 3").replace("organ: liver", "organ: x"))
    overrides = ["~losses.toy_word", "+losses.toy_words={}", "train.epochs=x", "nothing=1"]
    assert len({problem.place for problem in problems(path, *overrides)}) == 6


def test_a_folder_and_a_missing_file_are_refused(folder):
    with problem("no-such-file", str(folder), RecipeError):
        load_recipe(folder)
    write(folder, name="mine.yaml")
    for name, near in (("brest", "breast"), ("mine", "mine.yaml")):
        with problem("no-such-file", name, RecipeError) as found:
            load_recipe(name)
        assert found[0].hint.startswith(f"Did you mean '{near}'? Shipped: ")


@pytest.mark.parametrize(
    ("base", "guess"), [("smoke.yaml", "'shipped:smoke'"), ("recipes/smoke.yaml", "'shipped:smoke'"), ("own.yml", "")]
)
def test_a_base_that_is_missing_suggests_a_shipped_recipe_and_never_the_file_itself(tmp_path, base, guess):
    file = tmp_path / "own.yaml"
    file.write_text(f"_base_: {base}\n")
    with problem("no-such-file", f"{file}:1:1: _base_", RecipeError) as found:
        load_recipe(file)
    assert found[0].hint == (f"Did you mean {guess}?" if guess else "")


def test_two_plugins_of_one_name_are_reported_with_both_places(folder):
    (folder / "a.py").write_text(TOYS.read_text())
    (found,) = problems(write(folder), "plugins=[a.py]")
    assert (found.code, found.place) == ("duplicate-name", "a.py:13") and "toys.py:13" in found.found


def test_a_file_overrides_its_base_and_an_override_both(folder):
    write(folder, GOOD + "train: {epochs: 1, batch_size: 1, seed: 1}\n", "base.yaml")
    path = write(folder, "_base_: base.yaml\ntrain: {epochs: 2, batch_size: 2}\n")
    recipe = load_recipe(path, ["train.epochs=3", "train.epochs=4"])
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed, recipe.train.max_grad_norm) == (
        4,
        2,
        1,
        1.0,
    )
    assert recipe.origins["train.epochs"] == "override: train.epochs=4"
    assert recipe.origins["train.batch_size"] == "r.yaml:2:20"
    assert recipe.origins["train.seed"] == "base.yaml:11:35"


def test_later_bases_win_and_a_shared_base_is_read_once(folder):
    write(folder, GOOD + "train: {epochs: 1, seed: 1}\n", "root.yaml")
    write(folder, "_base_: root.yaml\ntrain: {epochs: 2}\n", "a.yaml")
    write(folder, "_base_: root.yaml\ntrain: {batch_size: 3}\n", "b.yaml")
    train = load_recipe(write(folder, "_base_: [a.yaml, b.yaml]\n")).train
    assert (train.epochs, train.batch_size, train.seed) == (2, 3, 1)


def test_lists_are_replaced_and_null_removes_a_loss(folder):
    write(folder, GOOD.replace("losses:\n", "losses:\n  toy_topic: {}\n"), "base.yaml")
    recipe = load_recipe(
        write(folder, "_base_: base.yaml\nevaluate: {metrics: [toy_other, toy_score]}\nlosses: {toy_topic: }\n")
    )
    assert [m.name for m in recipe.evaluate.metrics] == ["toy_other", "toy_score"]
    assert list(recipe.losses) == ["toy_words"]


def test_another_plugin_drops_the_keys_of_the_previous_one_with_a_notice(folder):
    write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, width: 9, deep: true"), "base.yaml")
    path = write(folder, "_base_: base.yaml\n")
    recipe = load_recipe(path, ["model.encoder.height=2", "model.encoder.name=other_eyes"])
    assert recipe.model.encoder.keys == {"height": 2}
    (notice,) = recipe.notices
    assert notice.endswith("model.encoder: other_eyes replaces toy_eyes, whose keys are dropped: width, deep")
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


def test_scalars_follow_yaml_1_2(folder):
    text = "{a: 1e-4, b: 1_000, c: no, d: 010, e: 2024-01-01, f: 1:30, g: '1', h: ~, i: True, j: .5, k: 1e3, l: -.inf}"
    node = Loader(text).get_single_node()
    assert read_node(node, (), "x", {}, []) == {
        "a": 0.0001, "b": 1000, "c": "no", "d": "010", "e": "2024-01-01", "f": "1:30", "g": "1", "h": None, "i": True,
        "j": 0.5, "k": 1000.0, "l": float("-inf"),
    }  # fmt: skip


def test_references_may_refer_to_references(folder):
    path = write(folder, GOOD + "run: {root: 'out-${data.dataset.organ}', name: '${run.root}-b'}\n")
    assert load_recipe(path).run.name == "out-liver-b"


def test_nested_references_are_bounded(folder):
    lines = ["a0: " + "x" * 100] + [f"a{i + 1}: '${{a{i}}}${{a{i}}}'" for i in range(60)]
    with problem("invalid-reference", kind=RecipeError) as found:
        load_recipe(write(folder, "\n".join(lines)))
    assert "grows beyond 10000 characters" in found[0].found


WORDS = st.text(max_size=12).filter(lambda text: "$" not in text and text.isprintable())


SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "cache_dir": st.one_of(
                    WORDS, st.sampled_from(["1e4", "null", "no", "010", "~", "1:30", "- a", "a: b", "#", "???"])
                ),
                "channels": st.sampled_from([1, 3]),
                "num_workers": st.integers(0, 9),
                "augment": st.sampled_from([None, "jitter", {"name": "jitter", "flip": 0.5}]),
                "tokenizer": st.just("words"),
            },
        ),
        "optimizer": st.fixed_dictionaries(
            {"lr": st.floats(1e-12, 1e6)},
            optional={"encoder_lr": st.none() | st.floats(0, 1), "amsgrad": st.booleans()},
        ),
        "schedule": st.sampled_from(["step", {"name": "cosine", "floor": 0.1}]),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.integers(1, 10**6),
                "max_grad_norm": st.none() | st.floats(1e-9, 1e9),
                "micro_batch_size": st.sampled_from(["auto", 1, 2, 4]),
                "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
                "seed": st.integers(0, 2**32 - 1),
                "early_stopping_patience": st.none() | st.integers(1, 9),
            },
        ),
        "checkpoint": st.fixed_dictionaries({}, optional={"every_steps": st.none() | st.integers(1, 9)}),
        "run": st.fixed_dictionaries({"name": st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9_.+-]{0,9}\Z", fullmatch=True)}),
        "resume": WORDS,
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sections=SECTIONS,
    words=st.lists(WORDS, max_size=3),
    options=st.dictionaries(WORDS, st.floats(-1e9, 1e9), max_size=2),
    weight=st.floats(1e-9, 1e9),
)
def test_a_saved_recipe_loads_back_equal(folder, sections, words, options, weight):
    tree = yaml.safe_load(GOOD)
    tree["model"]["encoder"] |= {"words": words, "options": options}
    tree["losses"]["toy_words"]["weight"] = weight
    for section, block in sections.items():
        tree[section] = {**tree.get(section, {}), **block} if isinstance(block, dict) else block
    recipe = load_recipe(write(folder, json.dumps(tree, ensure_ascii=True)))
    assert recipe.model.encoder.keys["words"] == words
    data = sections.get("data", {})
    assert "cache_dir" not in data or recipe.data.cache_dir == data["cache_dir"]
    again = load_recipe(write(folder, save(recipe), "saved.yaml"))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert save(again) == save(recipe)


def test_the_hash_changes_only_with_keys_that_affect_results(folder):
    path = write(folder)
    same = ["run.name=x", "resume=auto", "data.cache_dir=x", "data.num_workers=3", "train.log_every=1"]
    assert recipe_hash(load_recipe(path, same)) == recipe_hash(load_recipe(path))
    for other in ["train.seed=1", "model.encoder.width=5", "losses.toy_words.weight=2", "data.image_size=64"]:
        assert recipe_hash(load_recipe(path, [other])) != recipe_hash(load_recipe(path))


def test_explain_shows_every_value_of_a_key_and_its_origin(folder):
    write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, width: 9"), "base.yaml")
    path = write(folder, "_base_: base.yaml\nmodel:\n  encoder: {width: 8}\n")
    (found,) = explain(load_recipe(path, ["model.encoder.width=7"]), "model.encoder.width")
    assert found.value == 7
    assert [value for value, _ in found.chain] == [4, 9, 8, 7]
    places = [place for _, place in found.chain]
    assert places[0].startswith("default of encoder/toy_eyes (")
    assert places[1:] == ["base.yaml:6:29", "r.yaml:3:13", "override: model.encoder.width=7"]


def test_the_effective_value_is_shown_first(folder):
    rows = explain_rows(load_recipe(write(folder), ["train.epochs=3"]), "train.epochs")
    assert rows == [
        ("train.epochs", "3", "override: train.epochs=3"),
        ("  before", "10", "default of framework/recipe/schema.py"),
    ]


def test_a_removed_value_returns_to_its_default(folder):
    path = write(folder, GOOD + "train: {max_grad_norm: 2.0}\n")
    (found,) = explain(load_recipe(path, ["~train.max_grad_norm"]), "train.max_grad_norm")
    assert found.value == 1.0
    assert [str(value) for value, _ in found.chain] == ["2.0", "(removed)", "1.0"]


def test_a_replaced_plugin_stays_in_the_chain_of_values(folder):
    write(folder, GOOD, "base.yaml")
    path = write(folder, "_base_: base.yaml\nmodel: {encoder: {name: other_eyes, height: 2}}\n")
    (name,) = explain(load_recipe(path), "model.encoder.name")
    assert [value for value, _ in name.chain] == ["toy_eyes", "other_eyes"]


def test_a_block_shows_all_its_keys_and_an_unknown_key_names_the_nearest(folder):
    recipe = load_recipe(write(folder))
    assert [found.key for found in explain(recipe, "data.dataset")] == [
        "data.dataset.name", "data.dataset.organ", "data.dataset.exams"
    ]  # fmt: skip
    assert explain(recipe, "evaluate.metrics.0.name")[0].value == "toy_score"
    with problem("unknown-key", "r.yaml", RecipeError) as unknown:
        explain(recipe, "train.epoks")
    assert "train.epochs" in unknown[0].hint


@pytest.mark.parametrize("name", ["breast", "busbra", "smoke"])
def test_every_key_can_be_explained_and_its_last_value_is_effective(name):
    recipe = load_recipe(name)
    tree = yaml.safe_load(save(recipe))
    del tree["format"]
    for section in tree:
        for found in explain(recipe, section):
            last = found.chain[-1][0]
            if found.key != "evaluate.metrics":  # written as names, held with all their keys
                assert json.loads(json.dumps(last)) == json.loads(json.dumps(found.value)), found


def test_recipes_are_compared_by_value_not_by_form(folder):
    write(folder, GOOD, "base.yaml")
    one = load_recipe(write(folder, "_base_: base.yaml\ntrain: {epochs: 10}\n", "one.yaml"))
    assert diff_rows(one, load_recipe(folder / "base.yaml")) == []
    two = load_recipe(folder / "base.yaml", ["train.epochs=3", "model.encoder.width=5"])
    assert [row[:3] for row in diff_rows(one, two)] == [
        ("model.encoder.width", "4", "5"), ("train.epochs", "10", "3")
    ]  # fmt: skip
    other = load_recipe(folder / "base.yaml", ["model.encoder={name: other_eyes, height: 1}"])
    assert ("model.encoder.height", "-", "1") in [row[:3] for row in diff_rows(one, other)]
    assert ("model.encoder.width", "4", "-") in [row[:3] for row in diff_rows(one, other)]


def test_delete_replaces_the_block_of_the_base(folder):
    write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, width: 9"), "base.yaml")
    deleted = "_base_: base.yaml\nmodel:\n  encoder: {_delete_: true, name: toy_eyes, deep: true}\n"
    recipe = load_recipe(write(folder, deleted))
    assert (recipe.model.encoder.keys["width"], recipe.model.encoder.keys["deep"]) == (4, True)
    assert recipe.notices == ()
    both = "losses:\n  _delete_: true\n  toy_topic: {}\ntrain: {freeze: [decoder]}\n"
    assert list(load_recipe(write(folder, f"_base_: base.yaml\n{both}")).losses) == ["toy_topic"]


def test_a_group_file_is_found_beside_the_recipe_or_among_the_shipped_files(folder):
    (folder / "train").mkdir()
    write(folder, "train: {epochs: 2, seed: 5}\n", "train/quick.yaml")
    path = write(folder, GOOD + "train: {epochs: 4, batch_size: 3}\n")
    train = load_recipe(path, ["train.seed=6", "train=quick"]).train
    assert (train.epochs, train.seed, train.batch_size) == (2, 6, 3), "files, then groups, then values"
    train = load_recipe(write(folder, GOOD + "train: quick\n")).train
    assert (train.epochs, train.seed) == (2, 5)
    assert load_recipe("breast", ["data=phantom_liver"]).data == load_recipe("liver").data


def test_a_group_file_sets_only_its_section(folder):
    (folder / "train").mkdir()
    write(folder, "train: {epochs: 2}\nrun: {root: x}\n", "train/quick.yaml")
    (found,) = problems(write(folder), "train=quick")
    assert (found.code, found.place) == ("unknown-key", "train/quick.yaml:2:1: run")


def test_a_group_name_cannot_leave_its_folder(folder):
    (folder / "train").mkdir()
    write(folder, "train: {epochs: 2}\n", "quick.yaml")
    (found,) = problems(write(folder), "train=../quick")
    assert (found.code, found.place) == ("wrong-type", "override: train=../quick")


def test_removals_are_applied_before_values(folder):
    path = write(folder, GOOD.replace("name: toy_eyes", "name: toy_eyes, width: 9, deep: true"))
    keys = load_recipe(path, ["model.encoder.name=toy_eyes", "~model.encoder.width"]).model.encoder.keys
    assert (keys["width"], keys["deep"]) == (4, True)
    both = load_recipe(path, ["+losses.toy_topic.weight=2", "~losses.toy_words", "train.freeze=[decoder]"]).losses
    assert {name: loss.weight for name, loss in both.items()} == {"toy_topic": 2.0}
    assert load_recipe(path, ["~distiller"]).distiller.name == "none"


def test_plus_appends_to_a_list_and_tilde_removes_by_name_or_index(folder):
    path = write(folder)
    added = load_recipe(path, ["+evaluate.metrics=toy_other", "+evaluate.metrics={name: bleu}"])
    assert [metric.name for metric in added.evaluate.metrics] == ["toy_score", "toy_other", "bleu"]
    write(folder, GOOD.replace("[toy_score]", "[toy_other, toy_score]"))
    for word in ("~evaluate.metrics.toy_other", "~evaluate.metrics.0"):
        assert [metric.name for metric in load_recipe(path, [word]).evaluate.metrics] == ["toy_score"]


@pytest.mark.parametrize("value", ["a=b, c", "x: y", "'", '"', "[1]", "~", "null", "a#b", "100%", "\u00e4"])
def test_an_override_may_hold_any_text_in_quotes(folder, value):
    quoted = json.dumps(value, ensure_ascii=False)
    assert load_recipe(write(folder), [f"data.cache_dir={quoted}"]).data.cache_dir == value


def test_overrides_take_lists_blocks_and_equal_signs(folder):
    words = ["model.encoder.words=[a=b, 'c,d', \"e f\"]", "model.encoder.options={x: 1.5}", "data.cache_dir=a=b=c"]
    recipe = load_recipe(write(folder), words)
    assert recipe.model.encoder.keys["words"] == ["a=b", "c,d", "e f"]
    assert recipe.model.encoder.keys["options"] == {"x": 1.5}
    assert recipe.data.cache_dir == "a=b=c"


@pytest.mark.parametrize("path", sorted(p for p in RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_copy_of_a_shipped_recipe_is_equal(path, folder):
    copy = copy_recipe(path.stem, folder / "deep" / "mine.yaml")
    assert load_recipe(copy) == load_recipe(path)
    comments = [
        line for line in path.read_text().splitlines() if line.startswith("# ") and "language-server" not in line
    ]
    assert [line for line in copy.read_text().splitlines() if line in comments] == comments
    assert len(copy.read_text().splitlines()) == len(path.read_text().splitlines())


def test_a_copy_finds_the_bases_and_plugins_of_its_original(folder):
    (folder / "there").mkdir()
    (folder / "there" / "mine.py").write_text(TOYS.read_text())
    write(folder, GOOD.replace(f"[{TOYS}]", "[mine.py]"), "there/base.yaml")
    write(folder, "_base_: [base.yaml]  # mine\nplugins: mine.py\n", "there/r.yaml")
    copy = copy_recipe("there/r.yaml", folder)
    assert copy == folder / "r.yaml"
    assert copy.read_text() == '_base_: ["there/base.yaml"]  # mine\nplugins: "there/mine.py"\n'
    assert load_recipe(copy) == load_recipe("there/r.yaml")


def test_a_copy_overwrites_nothing_and_has_the_extension_yaml(folder):
    write(folder)
    with problem("file-exists", "r.yaml", RecipeError):
        copy_recipe("breast", folder / "r.yaml")
    with problem("wrong-format", kind=RecipeError):
        copy_recipe("breast", folder / "mine")


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=lambda p: p.stem)
def test_shipped_recipes_load_by_name_and_have_a_head_comment(path):
    name = str(path.relative_to(RECIPES).with_suffix(""))
    if name.startswith(("base/", "data/")):  # a part of a recipe
        with problem("missing-key", kind=RecipeError):
            load_recipe(name)
    else:
        assert load_recipe(name) == load_recipe(path)
    assert any(line.startswith("# ") for line in path.read_text().splitlines()[:2])


def test_the_home_folder_is_meant_by_a_tilde_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.py").write_text(TOYS.read_text())
    (tmp_path / "base.yaml").write_text("_base_: shipped:smoke\n")
    (tmp_path / "r.yaml").write_text("_base_: ~/base.yaml\nplugins: [~/p.py]\ndata: {cache_dir: ~/cache}\n")
    keys = ["data.dataset=manifest", "data.dataset.file=~/x.json", "data.dataset.images=${data.cache_dir}/i"]
    more = ["run.root=~/r", "resume=~/r/x", "init_from=~/r/y", "distributed.deepspeed_config=~/d.json"]
    recipe = load_recipe("~/r.yaml", [*keys, *more, "distributed.strategy=zero2"])
    assert recipe.plugin_files == (tmp_path / "p.py",)
    assert recipe.data.dataset.keys["file"] == f"{tmp_path}/x.json"
    assert recipe.data.dataset.keys["images"] == f"{tmp_path}/cache/i"
    named = [recipe.run.root, recipe.resume, recipe.init_from, recipe.distributed.deepspeed_config]
    assert named == [f"{tmp_path}/{name}" for name in ("r", "r/x", "r/y", "d.json")]


def test_a_home_folder_that_nobody_has_is_named():
    with problem("no-such-file", "run.root"):
        load_recipe("smoke", ["run.root=~no.such.user/r"])


@pytest.mark.parametrize("text", ["12345", "1.10", "1e3", "true", "007", "2026-01-01"])
def test_a_key_that_is_a_text_is_taken_as_written(text, tmp_path):
    assert load_recipe("smoke", [f"run.name={text}"]).run.name == text
    (tmp_path / "r.yaml").write_text(f"_base_: shipped:smoke\nrun: {{name: {text}, root: {text}}}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.run.name, recipe.run.root) == (text, text)


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("resume=nonsense", "no-checkpoint"),
        ("resume=atuo", "no-checkpoint"),
        ("init_from=nonsense", "no-model"),
        ("distributed.deepspeed_config=none.json", "no-such-file"),
    ],
)
def test_folders_and_files_that_are_not_there_are_refused_at_validate(override, code):
    recipe = load_recipe("smoke", [override, "distributed.strategy=zero2"])
    with problem(code, override.partition("=")[0]):
        require_folders(recipe)
