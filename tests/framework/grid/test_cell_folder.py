"""The folder of a cell."""

from __future__ import annotations

from pathlib import Path

from harness import ROOT

from framework.grid.cell_folder import CellFolder
from framework.recipe import load_recipe


def test_a_cell_has_the_trackers_of_the_recipe_and_a_folder_of_its_own(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", ["run.trackers=[tensorboard, mlflow]", "run.name=mine"])
    folder = CellFolder(tmp_path / "cells" / "0123")
    folder.prepare(recipe)
    own = load_recipe(folder.recipe_file).run
    assert (own.trackers, own.root, own.name) == (["tensorboard", "mlflow"], str(tmp_path / "cells"), "run")
