"""Records of a run: whole, finite ones, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import problem

from framework.pages.records import read_records


def written(folder: Path, *records: dict[str, Any], rest: str = "") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + rest, "utf-8")
    return path


LOSS, BLEU = {"step": 1, "name": "train/loss", "value": 2.0}, {"step": 1, "name": "val/bleu_4", "value": 0.5}


def test_records_are_read_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, LOSS, BLEU)
    assert list(read_records(path)) == [("train/loss", 1, 2.0), ("val/bleu_4", 1, 0.5)]
    assert list(read_records(path, "val/bleu_4")) == [("val/bleu_4", 1, 0.5)]


def test_a_record_that_is_still_being_written_is_skipped(tmp_path: Path) -> None:
    assert len(list(read_records(written(tmp_path, LOSS, rest='{"step": 2, "name": "train/loss", "val')))) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_left_out(value: float, tmp_path: Path) -> None:
    assert list(read_records(written(tmp_path, LOSS, {**LOSS, "value": value}))) == [("train/loss", 1, 2.0)]


@pytest.mark.parametrize("line", ["{", "3", '{"step": 2, "name": "train/loss"}', '{"step": 2, "value": 1}'])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    with problem("damaged-file", place="metrics.jsonl:2"):
        list(read_records(written(tmp_path, LOSS, rest=f"{line}\n")))
