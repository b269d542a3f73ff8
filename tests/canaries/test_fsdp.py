"""Inner details of torch's fully_shard that framework/distributed/fsdp.py leans on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOISE = 1e-6


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    """What fsdp_worker.py found, of each of two processes, on gloo."""
    worker = str(Path(__file__).with_name("fsdp_worker.py"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*start, worker], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("facts")).split(" ", 1)[1])


def test_rows_are_dealt_out_as_torch_chunk_does(facts: list[dict[str, Any]]) -> None:
    """Of each parameter: its rows, where this process's begin, and how many it holds; rounded up, the last less."""
    first, second = (fact["rows"] for fact in facts)
    assert first["blocks.0.weight"] == [5, 0, 3] and second["blocks.0.weight"] == [5, 3, 2]
    assert first["blocks.1.bias"] == [3, 0, 2] and second["blocks.1.bias"] == [3, 2, 1]
    assert all(fact["rows_hold_the_values"] for fact in facts)


def test_a_process_without_rows_takes_part_with_none(facts: list[dict[str, Any]]) -> None:
    first, second = (fact["rows"] for fact in facts)
    assert first["last.weight"] == [1, 0, 1] and second["last.weight"] == [1, 1, 0]


def test_names_stay_as_they_were(facts: list[dict[str, Any]]) -> None:
    assert all(fact["same_names"] for fact in facts)


def test_to_local_is_a_view_and_what_is_written_to_it_is_what_forward_sees(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["local_is_a_view"] and fact["forward_sees_it"] < 1e-3  # a sum of hundreds


def test_weights_that_are_not_contiguous_are_refused(facts: list[dict[str, Any]]) -> None:
    """So fsdp.py lays them out anew. If this fails, it need not any more."""
    assert all(fact["other_layouts_refused"] for fact in facts)


def test_it_talks_through_the_group_that_is_there_with_its_time_out(facts: list[dict[str, Any]]) -> None:
    assert all(fact["timeouts"] == [77.0] for fact in facts)


def test_gradients_are_sums_over_micro_batches_and_means_over_processes(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["plain"] < NOISE and fact["plain_norm"][0] == pytest.approx(fact["plain_norm"][1], rel=1e-5)


def test_clipping_is_by_the_norm_of_all_processes_which_comes_cut_as_well(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["norm_is_sharded"] and fact["clipped"] < NOISE
        assert fact["clipped_norm"][0] == pytest.approx(fact["clipped_norm"][1], rel=1e-5)
        assert fact["clipped_norm"][0] > 1  # more than the limit, or nothing was clipped


def test_a_gradient_that_is_no_number_on_one_process_shows_on_both(facts: list[dict[str, Any]]) -> None:
    assert all(fact["norm_with_nan"] == "nan" and fact["moved_by_nan"] < NOISE for fact in facts)


def test_the_state_of_the_optimizer_is_cut_like_the_weights_and_its_count_is_not(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["states"] and fact["step_is_plain"] and fact["like_is_sharded"]
