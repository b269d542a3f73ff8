"""A machine with other exams is named, and nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROOT, launch

PLUGIN = '''
import os
from collections.abc import Sequence

from framework.exam import Exam
from framework.registry import register
from plugins.dataset.phantom import Phantom


@register("dataset", "stale_copy")
class StaleCopy:
    """Exams of which the second process has an older copy."""

    def __init__(self) -> None:
        self.exams = Phantom(organ="breast", exams=24, val_exams=8, test_exams=8)
        self.cache_key = self.exams.cache_key

    def splits(self) -> dict[str, Sequence[Exam]]:
        splits = dict(self.exams.splits())
        if os.environ.get("RANK") == "1":
            splits["train"] = list(splits["train"])[:-1]
        return splits
'''


@pytest.mark.long
def test_a_machine_with_other_exams_is_named(work: Path, tmp_path: Path) -> None:
    (tmp_path / "stale.py").write_text(PLUGIN, encoding="utf-8")
    recipe = tmp_path / "stale.yaml"
    recipe.write_text(
        f"_base_: {ROOT / 'recipes' / 'smoke.yaml'}\nplugins: [stale.py]\n"
        "data: {dataset: {_delete_: true, name: stale_copy}}\n",
        encoding="utf-8",
    )
    done = launch(str(recipe), "run.name=stale", cwd=work, processes=2, check=False)
    assert done.returncode != 0
    assert "[exams-differ]" in done.stderr and "(39 exams)" in done.stderr
    assert not (work / "runs" / "stale" / "stale" / "checkpoints").exists()
