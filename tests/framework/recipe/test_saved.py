"""Recipes that are stored with copies of their plugin files."""

from __future__ import annotations

from pathlib import Path

from framework.recipe import load_recipe, portable, recipe_hash

METRIC = '''
{imports}
from framework.registry import register


@register("metric", "{name}")
class Mine:
    """Nothing."""

    names = ("{name}",)
'''


def test_a_portable_recipe_loads_after_its_plugin_files_are_gone(tmp_path: Path) -> None:
    """Files of one name in two folders, each with a neighbour of one name, stay apart."""
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper.py").write_text(f"from third import {folder}\n")
        (tmp_path / folder / "third.py").write_text(f"{folder} = 1\n")
        (tmp_path / folder / "unrelated.py").touch()
        file = tmp_path / folder / "mine.py"
        file.write_text(METRIC.format(name=folder, imports="import helper"))
        files.append(file)
    recipe = load_recipe("smoke", [f"plugins={file}" for file in files])
    saved, before = portable(recipe), recipe_hash(recipe)
    assert set(saved.code) == {
        f"{folder}/{name}.py" for folder in ("plugins", "plugins-2") for name in ("mine", "helper", "third")
    }
    run = tmp_path / "run"
    run.mkdir()
    saved.write(run)
    for file in files:
        file.unlink()
    loaded = load_recipe(run / "recipe.yaml")
    assert loaded.plugin_files == (run / "plugins" / "mine.py", run / "plugins-2" / "mine.py")
    assert recipe_hash(loaded) == before
    again = portable(loaded)
    assert (again.text, again.code) == (saved.text, saved.code)


def test_a_neighbour_that_is_not_python_is_copied_and_read_no_further(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def (")
    file = tmp_path / "mine.py"
    file.write_text(METRIC.format(name="mine", imports="def later():\n    import helper\n"))
    assert set(portable(load_recipe("smoke", [f"plugins={file}"])).code) == {"plugins/mine.py", "plugins/helper.py"}
