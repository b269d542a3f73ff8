"""Inner details of DeepSpeed that framework/distributed/zero.py and deepspeed_config.py lean on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STAGES = ("zero1", "zero2", "zero3")
SIZES = {"first.weight": 35, "first.bias": 5, "last.weight": 5, "last.bias": 1}
NOISE = 1e-6


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    """What deepspeed_worker.py found, of each of two processes."""
    worker = str(Path(__file__).with_name("deepspeed_worker.py"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*start, worker], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("facts")).split(" ", 1)[1])


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_stepped_when_it_starts(facts: list[dict[str, Any]], stage: str) -> None:
    """The optimizer's state is empty and no weight has moved, so that step 1 is Adam's first."""
    for fact in facts:
        assert fact[stage]["pieces"]["state_at_start"] == 0 and fact[stage]["pieces"]["moved_at_start"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_the_places_of_the_pieces_cover_every_value_once(facts: list[dict[str, Any]], stage: str) -> None:
    held = [fact[stage]["pieces"]["held"] for fact in facts]
    for name, size in SIZES.items():
        values = [value for pieces in held for value in range(pieces[name][0], sum(pieces[name]))]
        assert sorted(values) == list(range(size)), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_flat_tensors_hold_the_weights_in_fp32_at_these_places(facts: list[dict[str, Any]], stage: str) -> None:
    """bit16_groups, single_partition_of_fp32_groups and _hp_mapping; grad_position and fp32_partitioned_groups_flat."""
    assert all(fact[stage]["pieces"]["flat_holds_the_values"] for fact in facts)


def test_zero3_pads_the_last_process_so_that_all_hold_as_much(facts: list[dict[str, Any]]) -> None:
    held = [fact["zero3"]["pieces"]["held"] for fact in facts]
    assert [pieces["first.weight"] for pieces in held] == [[0, 18], [18, 17]]
    assert all(fact["zero3"]["pieces"]["frozen"] == [25, 13] for fact in facts)


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_given_works_on_the_flat_tensors(facts: list[dict[str, Any]], stage: str) -> None:
    for fact in facts:
        assert fact[stage]["pieces"]["state_is_of_the_flat"] and fact[stage]["pieces"]["state_after"] == 2


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_weights_have_no_place_in_them(facts: list[dict[str, Any]], stage: str) -> None:
    assert all(fact[stage]["pieces"]["frozen_has_no_place"] for fact in facts)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_were_put_in_are_what_forward_sees_and_the_next_step_keeps(
    facts: list[dict[str, Any]], stage: str
) -> None:
    for fact in facts:
        assert fact[stage]["pieces"]["forward_after_put"] < 1e-4  # a sum of tens
        assert fact[stage]["pieces"]["moved_by_a_rate_of_zero"] < NOISE


def test_zero3_keeps_small_weights_gathered_and_no_others(facts: list[dict[str, Any]]) -> None:
    """So those must be gathered anew after their pieces were put in; the last test shows that this suffices."""
    for fact in facts:
        pieces = fact["zero3"]["pieces"]
        assert pieces["persistent"] == ["first.bias", "frozen.bias", "last.bias", "last.weight"]
        assert pieces["others_are_empty"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_sums_over_micro_batches_and_means_over_processes(
    facts: list[dict[str, Any]], stage: str
) -> None:
    """set_gradient_accumulation_boundary says where a step ends, and scale_wrt_gas=False keeps it from dividing."""
    for fact in facts:
        steps = fact[stage]["steps"]
        assert steps["plain"] < NOISE
        assert steps["plain_norm"][0] == pytest.approx(steps["plain_norm"][1], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_is_applied_and_the_norm_is_the_one_before(facts: list[dict[str, Any]], stage: str) -> None:
    for fact in facts:
        steps = fact[stage]["steps"]
        assert steps["clipped"] < NOISE and steps["applied"]
        assert steps["clipped_norm"][0] == pytest.approx(steps["clipped_norm"][1], rel=1e-5)
        assert steps["clipped_norm"][0] > 1  # more than the limit, or nothing was clipped


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_no_number_on_one_process_is_skipped_on_both(
    facts: list[dict[str, Any]], stage: str
) -> None:
    for fact in facts:
        steps = fact[stage]["steps"]
        assert steps["applied_with_nan"] is False and steps["moved_by_nan"] < NOISE
        assert steps["applied_after_nan"] is True and steps["after_nan"] < NOISE


def test_an_optimizer_that_it_does_not_know_must_be_allowed(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["rest"]["unknown_optimizer"] and fact["rest"]["unknown_refused"]


def test_the_name_by_which_messages_through_shared_memory_are_switched_off_is_one_that_it_knows(
    facts: list[dict[str, Any]],
) -> None:
    assert all(fact["rest"]["knows_shared_memory"] for fact in facts)


def test_autocast_computes_in_bf16_and_leaves_the_weights_in_fp32(facts: list[dict[str, Any]]) -> None:
    assert all(fact["rest"]["autocast"] == ["torch.bfloat16", "torch.float32", "torch.float32"] for fact in facts)


def test_its_own_groups_forget_the_time_out_until_they_are_told(facts: list[dict[str, Any]]) -> None:
    """The default group's was 77 s; DeepSpeed's groups wait for half an hour, so zero.py sets theirs."""
    for fact in facts:
        assert fact["rest"]["timeouts"] == [77.0, 1800.0]
        assert fact["rest"]["timeouts_set"] == [154.0]
