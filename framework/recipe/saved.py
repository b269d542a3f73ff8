"""Writes a complete recipe as YAML that loads back to an equal recipe, and hashes what affects its results."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from framework.recipe.renamed import FORMAT
from framework.recipe.schema import Choice, Loss, Recipe, Section
from framework.recipe.source import Key, dotted
from framework.registry.plugin_file import copies_of
from framework.runtime.files import atomic_write

# Keys that affect where a run is stored, its speed and what is kept, but not its results.
NOT_THE_RESULT = (
    ("run",),
    ("resume",),
    ("resume_ignore",),
    ("plugins",),
    ("data", "cache_dir"),
    ("data", "cache_images"),
    ("data", "num_workers"),
    ("train", "micro_batch_size"),
    ("train", "log_every"),
    ("train", "profile"),
    ("train", "compile"),
    ("distributed", "strategy"),
    ("distributed", "offload"),
    ("distributed", "activation_checkpointing"),
    ("distributed", "timeout"),
    ("distributed", "deepspeed_config"),
    ("checkpoint",),
    ("evaluate", "bootstrap_samples"),
)
# Texts that every YAML reader takes for a string. The others are quoted.
BARE = re.compile(r"[A-Za-z_/][\w./-]*\Z", re.ASCII)
NOT_BARE = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def plain(value: Any) -> Any:
    """A recipe in the form of its YAML: a plugin's keys are beside its name."""
    if isinstance(value, Choice):
        fields = {name: plain(getattr(value, name)) for name in type(value).model_fields if name != "keys"}
        if isinstance(value, Loss):
            del fields["name"]  # its key in `losses`
        return {**fields, **plain(value.keys)}
    if isinstance(value, Section):
        return {key: plain(getattr(value, name)) for key, name in type(value).field_names().items()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def values(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value of a recipe with its key. A list is one value, since layers replace it as a whole."""
    if not isinstance(tree, dict) or not tree:
        yield key, tree
        return
    for name, value in tree.items():
        yield from values(value, (*key, name))


def keys_in(recipe: Recipe) -> dict[str, None]:
    """Every dotted key of a recipe, including blocks, in order."""
    return {dotted(key[:end]): None for key, _ in values(plain(recipe)) for end in range(1, len(key) + 1)}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    bare = BARE.match(value) and value.lower() not in NOT_BARE
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if bare else '"')


_Dumper.add_representer(str, _text)


def save(recipe: Recipe) -> str:
    """The recipe with all defaults as YAML, with the number of its format, which loads back to an equal recipe."""
    return _dump(plain(recipe))


def _dump(tree: Mapping[str, Any]) -> str:
    return yaml.dump({"format": FORMAT, **tree}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


@dataclass(frozen=True)
class PortableRecipe:
    """A recipe as YAML with copies of its plugin files, which it names relative to itself.

    Attributes:
        code: content of each copy by its name, relative to the recipe.
    """

    text: str
    code: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes the copies and recipe.yaml."""
        for name, content in self.code.items():
            (folder / name).parent.mkdir(exist_ok=True)
            atomic_write(folder / name, content)
        atomic_write(folder / "recipe.yaml", self.text)


def portable(recipe: Recipe) -> PortableRecipe:
    """The recipe with its plugin files as they are now, to load back elsewhere or after the files are gone."""
    names, code = copies_of(recipe.plugin_files)
    return PortableRecipe(_dump({**plain(recipe), "plugins": names}), code)


def result_tree(recipe: Recipe) -> dict[str, Any]:
    """The values that may affect the results. Plugin files count by their content, not their path."""
    tree = plain(recipe)
    for key in NOT_THE_RESULT:
        block = tree
        for part in key[:-1]:
            block = block[part]
        block.pop(key[-1])
    tree["plugins"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in recipe.plugin_files]
    return tree


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits that change with anything that may affect the results."""
    text = json.dumps(result_tree(recipe), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
