"""`train.profile`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from framework.run.step_profile import FOLDER, StepProfile
from framework.runtime.step_parts import PARTS, step_part


@pytest.mark.parametrize("steps", [5, 12])
def test_a_profile_has_a_bounded_trace_and_a_page_with_the_parts_of_a_step(tmp_path: Path, steps: int) -> None:
    profile = StepProfile(tmp_path, "device cpu")
    for _ in range(steps):
        for part in PARTS:
            with step_part(part):
                torch.ones(8, 8) @ torch.ones(8, 8)
        profile.step()
    profile.close()
    (trace,) = (tmp_path / FOLDER).glob("*.pt.trace.json.gz")
    names = [event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert names.count("forward") == min(steps - 3, 5)
    lines = (tmp_path / FOLDER / "summary.txt").read_text().splitlines()
    assert lines[0] == "device cpu"
    assert [line[:17].strip() for line in lines[3:8]] == list(PARTS)
    assert any(line.startswith("communication") for line in lines)


def test_a_part_costs_nothing_without_a_profiler() -> None:
    with step_part("forward") as label:
        assert label is None
