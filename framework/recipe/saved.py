"""A recipe written out: as YAML that loads back to an equal recipe, and as a hash of what it computes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from framework.recipe.schema import Choice, Loss, Recipe, Section
from framework.recipe.source import Key, dotted

# Where a run lies, how fast it is and what is kept of it, but not what it computes.
NOT_THE_RESULT = (
    ("run",),
    ("resume",),
    ("resume_ignore",),
    ("plugins",),
    ("data", "cache_dir"),
    ("data", "num_workers"),
    ("train", "micro_batch_size"),
    ("train", "log_every"),
    ("distributed", "strategy"),
    ("distributed", "offload"),
    ("distributed", "activation_checkpointing"),
    ("distributed", "timeout"),
    ("distributed", "deepspeed_config"),
    ("checkpoint",),
    ("evaluate", "bootstrap_samples"),
)
# Texts that no YAML reader takes for anything else. The others are written in quotes.
BARE = re.compile(r"[A-Za-z_/][\w./-]*\Z", re.ASCII)
NOT_BARE = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def plain(value: Any) -> Any:
    """A recipe as its YAML says it: a plugin's keys stand beside its name."""
    if isinstance(value, Choice):
        beside = {name: plain(getattr(value, name)) for name in type(value).model_fields if name != "keys"}
        if isinstance(value, Loss):
            del beside["name"]  # its key in `losses`
        return {**beside, **plain(value.keys)}
    if isinstance(value, Section):
        return {word: plain(getattr(value, name)) for word, name in type(value).words().items()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def values(tree: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value of a recipe: a list counts as one, since layers replace it whole."""
    if not isinstance(tree, dict) or not tree:
        yield key, tree
        return
    for name, value in tree.items():
        yield from values(value, (*key, name))


def keys_in(recipe: Recipe) -> dict[str, None]:
    """Every dotted key of a recipe, of blocks too, in their order."""
    return {dotted(key[:end]): None for key, _ in values(plain(recipe)) for end in range(1, len(key) + 1)}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    bare = BARE.match(value) and value.lower() not in NOT_BARE
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if bare else '"')


_Dumper.add_representer(str, _text)


def save(recipe: Recipe) -> str:
    """YAML of the whole recipe, every default written out, which loads back to an equal recipe."""
    return yaml.dump(plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def result_tree(recipe: Recipe) -> dict[str, Any]:
    """What may change the result, as plain values. Plugin files count by what they say, not by where they lie."""
    tree = plain(recipe)
    for key in NOT_THE_RESULT:
        block = tree
        for part in key[:-1]:
            block = block[part]
        block.pop(key[-1])
    tree["plugins"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in recipe.plugin_files]
    return tree


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits that change with anything that may change the result."""
    text = json.dumps(result_tree(recipe), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
