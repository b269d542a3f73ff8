"""The record of a model's patients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import problem

from framework.data.leakage import patients_seen, require_unseen
from framework.recipe import load_recipe


@pytest.mark.parametrize(
    "content", [{"datasets": ["phantom"]}, {"datasets": "phantom", "train": [], "val": []}, {"train": [], "val": [3]}]
)
def test_a_record_of_another_form_is_damaged(tmp_path: Path, content: dict[str, object]) -> None:
    (tmp_path / "patients.json").write_text(json.dumps(content))
    recipe = load_recipe("smoke")
    with problem("damaged-file", str(tmp_path / "patients.json")):
        require_unseen("resume", tmp_path, recipe, recipe, {})
    with problem("damaged-file", str(tmp_path / "patients.json")):
        patients_seen(recipe, {}, tmp_path)
