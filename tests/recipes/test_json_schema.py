"""The JSON Schema accepts every valid recipe file, and locates the mistakes of others."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from harness import ROOT

from framework.recipe import RECIPES, load_recipe, save
from framework.recipe import schema as recipe_schema
from framework.recipe.json_schema import as_text, json_schema, meaning
from framework.recipe.schema import Section
from framework.recipe.source import parse, read_node, shipped_recipes
from framework.registry import catalogue
from framework.registry.signature import keys_of
from framework.runtime.errors import Problem

COMMITTED = RECIPES / "sonoscribe.schema.json"
SHIPPED_FILES = sorted(shipped_recipes().values())
FILES = sorted([*SHIPPED_FILES, *(ROOT / "docs" / "examples").glob("*.yaml")])
WHOLE = sorted(path.stem for path in RECIPES.glob("*.yaml"))
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")
SHIPPED = json_schema()


def data(text: str) -> Any:
    problems: list[Problem] = []
    node = parse(textwrap.dedent(text), "recipe.yaml")
    assert node is not None
    value = read_node(node, (), "recipe.yaml", {}, problems)
    assert not problems
    return value


def errors(text: str, schema: dict[str, Any] = SHIPPED) -> list[str]:
    """Place and message of every error."""
    found = jsonschema.Draft7Validator(schema).iter_errors(data(text))
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for outer in found for error in innermost(outer)
    ]


def innermost(error: jsonschema.ValidationError) -> Iterator[jsonschema.ValidationError]:
    """Of alternatives, the errors of the one that was meant: the last for a block or list, else the first."""
    if error.validator != "anyOf":
        yield error
        return
    meant = len(error.validator_value) - 1 if isinstance(error.instance, (dict, list)) else 0
    for inner in error.context:
        if inner.relative_schema_path[0] == meant:
            yield from innermost(inner)


def plugin_files(path: Path) -> tuple[Path, ...]:
    return tuple(path.parent / file for file in data(path.read_text(encoding="utf-8")).get("plugins", ()))


def test_the_schema_is_valid_in_draft_7() -> None:
    jsonschema.Draft7Validator.check_schema(json.loads(as_text(SHIPPED)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_file_passes_as_it_is_written(path: Path) -> None:
    assert errors(path.read_text(encoding="utf-8"), json_schema(plugin_files(path))) == []


@pytest.mark.parametrize("name", WHOLE)
def test_every_recipe_passes_when_saved_whole(name: str) -> None:
    assert errors(save(load_recipe(name))) == []


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_of_a_shipped_recipe_leads_to_the_schema(path: Path) -> None:
    found = MODELINE.match(path.read_text(encoding="utf-8"))
    assert found, "its first line is no # yaml-language-server: $schema=..."
    assert (path.parent / found.group(1)).resolve() == COMMITTED


@pytest.mark.parametrize(
    "text",
    [
        "_base_: shipped:breast.yaml",
        "_base_: [base/sgf.yaml, other.yaml]\nplugins: mine.py",
        "data: busbra\nmodel: small\nlosses: all\ntrain: {epochs: 1}",
        "distiller: lda",
        "distiller: none",
        "distiller: {name: none}",
        "data: {augment: null}",
        "data: {augment: jitter}",
        "data: {dataset: {name: manifest, file: a.json, images: a/}}",
        "_base_: mine.yaml\ndata: {dataset: {name: manifest, report_key: text}}",
        "losses: {topic: null, next_token: {}, global_semantic: {_delete_: true, weight: 2}}",
        "losses: {_delete_: true, topic: {weight: 0}}",
        "train: {_delete_: true, max_grad_norm: null, micro_batch_size: auto}",
        "model: {_delete_: true, encoder: {_delete_: true, name: tiny_cnn}}",
        "model: {encoder: {depth: 18}, decoder: transformer}",
        "model: {encoder: '${run.name}', decoder: {name: '${run.name}', layers: '${train.epochs}'}}",
        "train: {epochs: '${evaluate.num_beams}', precision: '${run.name}', max_grad_norm: '${optimizer.lr}'}",
        "optimizer: {encoder_lr: 0, lr: 1}",
        "evaluate: {metrics: [bleu, {name: findings_f1}], monitor: val/findings_f1}",
        "evaluate: {monitor: {val/bleu_4: 1, val/my_errors: -0.5, val/cider: '${train.max_grad_norm}'}}",
        "evaluate: {monitor: {_delete_: true, val/cider: 1}}",
        "resume: runs/breast/x",
    ],
)
def test_a_part_of_a_recipe_passes(text: str) -> None:
    assert errors(text) == []


MISTAKES = [
    ("modle: {}", ": Additional properties are not allowed ('modle' was unexpected)"),
    ("_delete_: true", ": Additional properties are not allowed ('_delete_' was unexpected)"),
    ("_base_: 3", "_base_: 3 is not of type 'string'"),
    ("_base_: [a.yaml, '']", "_base_.1: '' should be non-empty"),
    ("plugins: {a: b}", "plugins: {'a': 'b'} is not of type 'array'"),
    ("train: {epoch: 3}", "train: Additional properties are not allowed ('epoch' was unexpected)"),
    ("train: {epochs: 0}", "train.epochs: 0 is less than or equal to the minimum of 0"),
    ("train: {epochs: '3'}", "train.epochs: '3' is not of type 'integer'"),
    ("train: {epochs: 2.5}", "train.epochs: 2.5 is not of type 'integer'"),
    ("train: {epochs: true}", "train.epochs: True is not of type 'integer'"),
    ("train: {epochs: [3]}", "train.epochs: [3] is not of type 'string'"),
    ("train: {epochs: null}", "train.epochs: None is not of type 'integer'"),
    ("train: {epochs: '${a.b}0'}", "train.epochs: '${a.b}0' is not of type 'integer'"),
    ("train: {micro_batch_size: all}", "train.micro_batch_size: 'all' is not of type 'integer'"),
    ("train: {precision: fp8}", "train.precision: 'fp8' is not one of ['auto', 'fp32', 'bf16', 'fp16']"),
    ("train: {seed: 4294967296}", "train.seed: 4294967296 is greater than or equal to the maximum of 4294967296"),
    ("train: {_delete_: false}", "train._delete_: True was expected"),
    ("train: 3", "train: 3 is not of type 'string'"),
    ("data: null", "data: None is not of type 'string'"),
    ("data: {image_size: 4}", "data.image_size: 4 is less than the minimum of 8"),
    ("data: {channels: 2}", "data.channels: 2 is not one of [1, 3]"),
    ("data: {cache_dir: [x]}", "data.cache_dir: ['x'] is not of type 'string'"),
    ("data: {augment: jiter}", "data.augment: 'jiter' is not one of ['crop', 'jitter', 'ultrasound']"),
    ("data: {tokenizer: null}", "data.tokenizer: None is not "),
    ("data: {dataset: {name: manifest, file: a.json}}", "data.dataset: 'images' is a required property"),
    ("data: {dataset: manifest}", "data.dataset: 'manifest' is not of type 'object'"),
    ("data: {dataset: {name: phantom, organ: kidney}}", "data.dataset.organ: 'kidney' is not one of ['breast', "),
    (
        "distiller: ldaa",
        "distiller: 'ldaa' is not one of ['faiss_kmeans', 'lda', 'nmf', 'umap_hdbscan', 'umap_kmeans', 'none']",
    ),
    (
        "distiller: {name: none, topics: 3}",
        "distiller: Additional properties are not allowed ('topics' was unexpected)",
    ),
    ("distiller: {name: lda, dimensions: 3}", "distiller: Additional properties are not allowed ('dimensions' was un"),
    ("distiller: {name: lda, seed: 3}", "distiller: Additional properties are not allowed ('seed' was unexpected)"),
    ("distiller: {topic: 3}", "distiller: Additional properties are not allowed ('topic' was unexpected)"),
    ("distiller: {topics: 0}", "distiller.topics: 0 is less than or equal to the minimum of 0"),
    ("model: {encoder: {name: resnt}}", "model.encoder.name: 'resnt' is not one of ['backbone', "),
    ("model: {encoder: {name: resnet, depth: 11}}", "model.encoder.depth: 11 is not one of [10, 18, 34, 50, 101, 152]"),
    ("model: {encoder: {name: 3}}", "model.encoder.name: 3 is not one of "),
    ("model: {encoder: {name: tiny_cnn, depth: 10}}", "model.encoder: Additional properties are not allowed ('depth'"),
    ("model: {decoder: [transformer]}", "model.decoder: ['transformer'] is not "),
    ("losses: {topc: {weight: 1}}", "losses: Additional properties are not allowed ('topc' was unexpected)"),
    ("losses: {topic: {weight: -1}}", "losses.topic.weight: -1 is less than the minimum of 0"),
    ("losses: {topic: 0.3}", "losses.topic: 0.3 is not of type 'object', 'null'"),
    ("losses: {topic: {name: topic}}", "losses.topic: Additional properties are not allowed ('name' was unexpected)"),
    ("losses: {next_token: {label_smoothing: 2}}", "losses.next_token.label_smoothing: 2 is greater than the maximum"),
    ("optimizer: {lr: 0}", "optimizer.lr: 0 is less than or equal to the minimum of 0"),
    ("optimizer: {name: adamw, groups: 1}", "optimizer: Additional properties are not allowed ('groups' was unex"),
    ("evaluate: {metrics: bleu}", "evaluate.metrics: 'bleu' is not of type 'array'"),
    ("evaluate: {metrics: [bleu, blue]}", "evaluate.metrics.1: 'blue' is not one of ['agreement', "),
    ("evaluate: {metrics: [bleu, bleu]}", "evaluate.metrics: ['bleu', 'bleu'] has non-unique elements"),
    ("evaluate: {metrics: [{}]}", "evaluate.metrics.0: 'name' is a required property"),
    ("evaluate: {monitor: test/bleu_4}", "evaluate.monitor: 'test/bleu_4' does not match '^val/.'"),
    ("evaluate: {monitor: {val/bleu_4: high}}", "evaluate.monitor.val/bleu_4: 'high' is not of type 'number'"),
    ("evaluate: {monitor: {test/bleu_4: 1}}", "evaluate.monitor: 'test/bleu_4' does not match '^(val/.|"),
    ("evaluate: {monitor: 3}", "evaluate.monitor: 3 is not of type 'string'"),
    ("run: {name: a/b}", "run.name: 'a/b' does not match "),
    ("distributed: {strategy: dpp}", "distributed.strategy: 'dpp' is not one of ['auto', "),
    ("resume: [x]", "resume: ['x'] is not of type 'string'"),
    ("[]", ": [] is not of type 'object'"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_refused_where_it_stands(text: str, expected: str) -> None:
    (found,) = errors(text)
    assert found.startswith(expected)


def test_two_mistakes_are_both_reported() -> None:
    assert len(errors("train: {epochs: 0}\nmodel: {encoder: {name: resnet, depth: 11, widht: 3}}")) == 3


def test_keys_of_a_grid_file_are_not_in_the_recipe_schema() -> None:
    assert "executor" not in SHIPPED["definitions"] and "encoder" in SHIPPED["definitions"]
    (found,) = errors("executor: {name: local}")
    assert found.startswith(": Additional properties are not allowed ('executor'")


PLUGIN = '''
from framework.registry import register


@register("encoder", "acme/spiral")
class Spiral:
    """Walks a spiral.

    Args:
        turns: around the middle.
        steps: first and last.
        named: anything, by name.
    """

    def __init__(self, *, channels: int, turns: int, steps: tuple[int, float] = (1, 0.5), named: dict[str, int] = {}):
        pass


@register("loss", "acme/far")
class Far:
    """How far."""

    needs = ("pooled",)

    def __init__(self, *, reach: float | None) -> None:
        pass
'''


def test_a_plugin_of_an_outside_file_is_known_by_its_own_keys(tmp_path: Path) -> None:
    file = tmp_path / "acme.py"
    file.write_text(PLUGIN)
    schema = json.loads(as_text(json_schema((file,))))
    jsonschema.Draft7Validator.check_schema(schema)
    assert errors("model: {encoder: {name: acme/spiral, turns: 3, steps: [2, 1], named: {a: 1}}}", schema) == []
    assert errors("losses: {acme/far: {weight: 1, reach: null}}", schema) == []
    wrong = "model: {encoder: {name: acme/spiral, steps: [2, x], named: {a: b}, depth: 1}}"
    assert sorted(errors(wrong, schema)) == [
        "model.encoder.named.a: 'b' is not of type 'integer'",
        "model.encoder.steps.1: 'x' is not of type 'number'",
        "model.encoder: 'turns' is a required property",
        "model.encoder: Additional properties are not allowed ('depth' was unexpected)",
    ]
    assert errors("losses: {acme/far: {}}", schema) == ["losses.acme/far: 'reach' is a required property"]
    (found,) = errors("model: {encoder: acme/spiral}")
    assert found.startswith("model.encoder: 'acme/spiral' is not one of ['backbone', ")


def test_every_field_of_the_recipe_has_a_docstring() -> None:
    sections = [item for item in vars(recipe_schema).values() if isinstance(item, type) and issubclass(item, Section)]
    assert len(sections) > 10
    for section in sections:
        for field in section.model_fields:
            assert meaning(section, field).endswith("."), f"{section.__name__}.{field}"


def test_the_meaning_of_a_plugins_key_is_its_description() -> None:
    for plugin in catalogue().values():
        if plugin.kind not in ("loss", "metric", "executor") and keys_of(plugin):
            key = keys_of(plugin)[0]
            (known,) = [
                rule["then"]["properties"]
                for rule in SHIPPED["definitions"][plugin.kind]["then"]["allOf"]
                if rule["if"]["properties"]["name"]["const"] == plugin.name
            ]
            assert known[key.name].get("description", "") == key.doc
