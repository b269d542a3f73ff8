"""docs/reference/ and docs/troubleshooting.md are generated from the code, and complete."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from harness import ROOT

from framework.grid.file import GridFile, Prune, Report, Search
from framework.recipe.schema import Recipe, Section
from framework.registry import PLUGINS, catalogue
from framework.registry.signature import keys_of

REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted(REFERENCE.glob("*.md"))


def load_script() -> ModuleType:
    spec = spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SCRIPT = load_script()


def test_the_committed_pages_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert SCRIPT.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_named_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SCRIPT, "FOLDER", tmp_path)
    monkeypatch.setattr(SCRIPT, "PAGES", {"a.md": lambda: "new", "b/c.md": lambda: "same"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.md").write_text("same", encoding="utf-8")
    (tmp_path / "a.md").write_text("by hand", encoding="utf-8")
    assert SCRIPT.main(["--check"]) == 1
    assert capsys.readouterr().err == "stale: docs/a.md; run: python docs/make_reference.py\n"
    assert SCRIPT.main([]) == 0 and SCRIPT.main(["--check"]) == 0
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_has_as_many_cells_as_its_header(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(rows) > 30
    cells = {"recipe.md": 4, "grids.md": 4, "plugins.md": 5}[page.name]
    assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {cells}


def test_every_key_of_the_recipe_and_of_every_shipped_plugin_has_a_row() -> None:
    recipe, plugins = ((REFERENCE / f"{name}.md").read_text(encoding="utf-8") for name in ("recipe", "plugins"))
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        inner = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
        for key in [key for key in inner if key not in ("name", "keys") or name == "run"] or [name]:
            assert f"\n| `{key}` |" in recipe, f"{name}.{key}"
    for plugin in catalogue().values():
        if plugin.path.is_relative_to(PLUGINS):
            part = plugins.split(f"\n### {plugin.kind}/{plugin.name}\n", 1)[1].split("\n### ", 1)[0]
            for key in keys_of(plugin):
                assert f"\n| `{key.name}` |" in part, f"{plugin.kind}/{plugin.name}: {key.name}"


def test_every_key_of_a_grid_file_has_a_row_with_its_meaning() -> None:
    parts = re.split(r"(?m)^## ", (REFERENCE / "grids.md").read_text(encoding="utf-8"))
    tables = {head: text for head, _, text in (part.partition("\n") for part in parts)}
    blocks = {"The file": GridFile, "search": Search, "prune": Prune, "report": Report}
    assert [head for head in tables if head in blocks] == list(blocks)
    for head, model in blocks.items():
        keys = re.findall(r"(?m)^\| `(\w+)` \|.*\| ([^|]+\.) \|$", tables[head])
        assert [key for key, _ in keys] == list(model.model_fields), head


def test_the_code_that_a_page_links_to_exists() -> None:
    links = re.findall(r"\]\((\.\./\.\./[^)]+)\)", (REFERENCE / "plugins.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (REFERENCE / link).is_file()] == []
