"""docs/guide.md shows the templates as they are, and its recipes load. Run as a script, it renews the code shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

from framework.grid.executor import build_executor
from framework.grid.file import read_grid
from framework.grid.make import make_grid
from framework.recipe import load_recipe
from framework.recipe.schema import SLOTS
from framework.registry import KINDS
from framework.testing import CHECKS
from framework.testing.scaffold import TEMPLATES, write_plugin

PAGE = ROOT / "docs" / "guide.md"
IN_RECIPES = [kind for kind in KINDS if kind in SLOTS.values()]
SHOWN = re.compile(r"(?ms)(^<!-- framework/testing/templates/(\w+)\.py -->\n```python\n)(.*?)(^```$)")


def sections(page: str) -> dict[str, str]:
    _, *parts = re.split(r"(?m)^## ", page)
    return {head: text for head, _, text in (part.partition("\n") for part in parts)}


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def stale(page: str) -> list[str]:
    """Kinds whose block is not their template."""
    return [kind for _, kind, code, _ in SHOWN.findall(page) if code != template(kind)]


def renewed(page: str) -> str:
    return SHOWN.sub(lambda shown: shown[1] + template(shown[2]) + shown[4], page)


def template(kind: str) -> str:
    return (TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")


TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = sections(TEXT)


def test_every_kind_has_a_section_in_the_order_of_kinds() -> None:
    assert list(SECTIONS) == [*KINDS, "Share it"]


def test_every_section_shows_its_template_and_no_other_code() -> None:
    shown = {head: [kind for _, kind, _, _ in SHOWN.findall(text)] for head, text in SECTIONS.items()}
    assert shown == {**{kind: [kind] for kind in KINDS}, "Share it": []}
    assert len(blocks("python", TEXT)) == len(KINDS)


def test_the_code_is_that_of_the_templates() -> None:
    assert not stale(TEXT), f"run: python {Path(__file__).relative_to(ROOT)}"


def test_a_stale_block_is_found_and_renewed() -> None:
    old = TEXT.replace(template("loss"), "import torch\n")
    assert stale(old) == ["loss"]
    assert renewed(old) == TEXT


@pytest.mark.parametrize("kind", IN_RECIPES)
def test_the_recipe_of_a_section_loads_with_its_plugin(kind: str, tmp_path: Path) -> None:
    path, _ = write_plugin(kind, f"my_{kind}", tmp_path)
    (block,) = blocks("yaml", SECTIONS[kind])
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert block.startswith("_base_: shipped:smoke.yaml\n")
    assert recipe.plugin_files == (path,)
    assert f"my_{kind}" in str(recipe.model_dump(exclude={"plugins"}))


def test_the_grid_file_of_the_executors_section_loads_with_its_plugin(tmp_path: Path) -> None:
    path, _ = write_plugin("executor", "my_executor", tmp_path)
    (block,) = blocks("yaml", SECTIONS["executor"])
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    grid = make_grid(read_grid(tmp_path / "mine.yaml"))
    assert grid.file.plugin_files == (path,)
    executor: Any = build_executor(grid.file, grid.folder, None, 3)
    assert (type(executor).__name__, executor.jobs) == ("MyExecutor", 3)
    assert executor.niceness == grid.file.spec.executor["niceness"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_lists_the_run_time_values_of_its_kind(kind: str) -> None:
    (text,) = re.findall(r"(?ms)^\*\*Run-time values:\*\* (.*?)\n\n", SECTIONS[kind])
    assert {value for value in KINDS[kind].injected_params if f"`{value}`" not in text} == set()
    assert text.startswith("none.") == (not KINDS[kind].injected_params)


def test_the_check_settings_that_the_guide_names_exist() -> None:
    for kind, setting in re.findall(r'check\("(\w+)",\s+make,\s+(\w+)=', TEXT):
        assert setting in CHECKS[kind].__kwdefaults__


def test_the_files_that_the_guide_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#]+\.(?:md|py))[^)]*\)", TEXT)
    assert len(links) > 20
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


if __name__ == "__main__":
    PAGE.write_text(renewed(TEXT), encoding="utf-8")
