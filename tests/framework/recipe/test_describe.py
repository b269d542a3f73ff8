"""The contents of ls and describe, complete for every shipped plugin."""

import json

import pytest
from harness import TOYS, problem

from framework.grid.file import shipped_grids
from framework.recipe.describe import INJECTED, describe, find_by_words, in_words, plugins_of, rows_of_files, stands_in
from framework.recipe.json_schema import SECTION_OF_KIND
from framework.recipe.schema import Choice
from framework.recipe.source import shipped_recipes
from framework.registry import KINDS, Broken, PluginError, catalogue, find
from framework.registry import plugins as registry
from framework.registry.signature import RESERVED


@pytest.mark.parametrize("plugin", list(catalogue().values()), ids=lambda p: f"{p.kind}/{p.name}")
def test_every_shipped_plugin_has_summary_source_and_documented_keys(plugin):
    found = describe(plugin)
    assert found.summary, "the first line of the docstring"
    assert found.source or plugin.kind == "executor", "its Source: section"
    assert [key.name for key in found.keys if not key.meaning] == []
    assert "Source:" not in found.body and "Args:" not in found.body
    assert found.origin == "shipped" and plugin.path.stem in (plugin.name, "__init__")


def test_every_injected_parameter_has_a_meaning():
    assert set(INJECTED) == {name for kind in KINDS.values() for name in kind.injected_params}


def test_a_description_holds_signature_keys_units_and_fit():
    found = describe(find("encoder", "resnet"))
    assert found.signature.startswith("ResNet(*, channels: int, hf_config: dict | None=None, depth: Literal[")
    assert list(found.injected_params) == ["channels", "hf_config"]
    assert found.injected_params["channels"] == "channels of an image (data.channels)"
    assert (found.gives, found.needs) == (("patches", "pooled"), ())
    depth = found.keys[0]
    assert (depth.name, depth.type, depth.default, depth.unit) == ("depth", "10, 18, 34, 50, 101, 152", 18, "layers")
    assert "arXiv 1512.03385" in found.source and found.where.startswith("plugins/encoder/resnet.py:")


def test_undocumented_keys_are_described():
    keys = {key.name: key for key in describe(find("encoder", "toy_eyes", (TOYS,))).keys}
    assert keys["sizes"].type == "list of whole number" and keys["sizes"].default == [1, 2]
    assert keys["cut"].type == "number at least 0, at most 1 or null"
    assert json.loads(json.dumps(keys["options"].default)) == {}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "whole number above 0"),
        ({"anyOf": [{"type": "number", "maximum": 1}, {"type": "null"}]}, "number at most 1 or null"),
        ({"enum": ["a", 1]}, "a, 1"),
        ({"type": "boolean"}, "true or false"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "mapping of text"),
        ({}, "anything"),
    ],
)
def test_types_are_described_in_words(schema, words):
    assert in_words(schema) == words


@pytest.mark.parametrize("kind", sorted({*RESERVED, *SECTION_OF_KIND}))
def test_fields_beside_a_plugins_keys_are_reserved(kind):
    assert RESERVED[kind] == set(SECTION_OF_KIND[kind].field_names()) - set(Choice.model_fields)


def test_a_kind_may_be_plural():
    assert {plugin.kind for plugin in plugins_of("losses")} == {"loss"}
    assert {plugin.kind for plugin in plugins_of("encoders")} == {"encoder"}
    with problem("unknown-name", kind=PluginError) as found:
        plugins_of("losss")
    assert found[0].hint.startswith("Did you mean 'loss'? Known: dataset, ") and found[0].hint.endswith("recipe, grid")


def test_the_first_word_of_a_name_is_enough_for_the_hint():
    with problem("unknown-name") as found:
        find_by_words("lstm")
    assert found[0].hint.startswith("Did you mean 'lstm_attention'?")


def test_a_plugin_is_found_by_its_name_if_it_is_unique():
    assert find_by_words("toy_topic", (TOYS,)).kind == "loss"
    assert find_by_words("encoder/resnet").name == "resnet"
    with problem("unknown-name", kind=PluginError) as found:
        find_by_words("loss")
    assert "loss/contrastive" in found[0].expected
    with problem("unknown-name", kind=PluginError) as found:
        find_by_words("resnt")
    assert "resnet'? Known: " in found[0].hint


def test_a_name_with_a_vendor_is_found_without_the_vendor(tmp_path):
    (tmp_path / "mine.py").write_text('@register("metric", "acme/ratio")\nclass Ratio:\n    """Ratio."""\n')
    files = (tmp_path / "mine.py",)
    for words in ("metric/acme/ratio", "acme/ratio", "ratio"):
        assert find_by_words(words, files).name == "acme/ratio"


def test_a_broken_plugin_is_reported_without_its_kind(monkeypatch):
    item = Broken("encoder", "acme/eyes", "acme 1.2: acme/eyes = m", "there is no module m")
    monkeypatch.setattr(registry, "_without_files", lambda: ({}, (item,)))
    monkeypatch.setattr(registry, "_with_files", lambda files: ({}, ()))
    with problem("invalid-plugin", "acme 1.2", PluginError):
        find_by_words("acme/eyes")


def test_a_name_of_two_kinds_is_ambiguous(tmp_path):
    (tmp_path / "mine.py").write_text('@register("metric", "resnet")\nclass Ratio:\n    """Ratio."""\n')
    with problem("unknown-name", kind=PluginError) as found:
        find_by_words("resnet", (tmp_path / "mine.py",))
    assert found[0].expected == "one of: encoder/resnet, metric/resnet"


def test_recipes_are_listed_with_the_first_line_of_their_head():
    rows = {name: (head, where) for name, head, where in rows_of_files(shipped_recipes())}
    assert rows["breast"][0].startswith("The whole method on phantom exams of the breast")
    assert not any("yaml-language-server" in head for head, _ in rows.values())
    assert rows["data/busbra"][1].endswith("recipes/data/busbra.yaml")
    assert not any(name.startswith("grids/") for name in rows), "a grid is not a recipe"


def test_grids_are_listed_with_the_first_line_of_their_head():
    rows = {name: (head, where) for name, head, where in rows_of_files(shipped_grids())}
    assert rows["smoke"][0].startswith("Test of grids")
    assert rows["smoke"][1].endswith("recipes/grids/smoke.yaml")


def test_an_executor_is_described_by_the_block_of_a_grid_file():
    found = describe(find("executor", "local"))
    assert found.snippet == "executor: {name: local, processes: 1}"
    assert set(found.injected_params) == {"jobs"} and [key.name for key in found.keys] == ["processes"]
    assert {kind for kind in KINDS if stands_in(kind) == "a grid file"} == {"executor"}
