"""Copies a recipe for editing, and adjusts the paths in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from framework.recipe.source import RECIPES, SHIPPED, RecipeError, find_file, find_shipped, parse, read_text
from framework.registry import short
from framework.runtime.files import atomic_write, real_path

SCHEMA = RECIPES / "sonoscribe.schema.json"
MODELINE = re.compile(r"(?m)^# yaml-language-server: \$schema=.*$")


def copy_recipe(named: str, target: Path) -> Path:
    """Copies a recipe with its comments to a new file or into a folder.

    A shipped base becomes `shipped:NAME`; paths of other bases and of plugin files become relative to the copy.

    Raises:
        RecipeError: there is no such recipe, it does not parse, or the target exists.
    """
    source = find_file(named)
    target = target / source.name if target.is_dir() else target
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError("wrong-format", f"found '{short(target)}'", expected="a file that ends in .yaml, or a folder")
    if target.exists():
        raise RecipeError("file-exists", "this file exists", place=short(target), hint="Name another file, or move it.")
    text = read_text(source)
    node = parse(text, short(source))
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    changes = []
    for key, value in pairs:
        if key.value in ("_base_", "plugins"):
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(item, yaml.ScalarNode):
                    continue  # no name of a file; `validate` refuses it, in the copy too
                new = _named_from(source, item.value, target, shipped=key.value == "_base_")
                changes.append((item.start_mark.index, item.end_mark.index, new))
    for start, end, new in reversed(changes):
        text = text[:start] + new + text[end:]
    text = MODELINE.sub(lambda _: f"# yaml-language-server: $schema={_path(SCHEMA, target)}", text)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, text)
    return target


def _named_from(source: Path, named: str, target: Path, *, shipped: bool) -> str:
    """The path `named` in one file, as written in another."""
    file = find_shipped(named.removeprefix(SHIPPED)) if named.startswith(SHIPPED) else real_path(source.parent / named)
    if shipped and file.is_relative_to(RECIPES):
        return f'"{SHIPPED}{file.relative_to(RECIPES)}"'
    return f'"{_path(file, target)}"'


def _path(file: Path, target: Path) -> str:
    return Path(os.path.relpath(file, target.parent.resolve())).as_posix()
