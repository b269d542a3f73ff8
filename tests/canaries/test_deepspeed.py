"""Details of DeepSpeed that framework/distributed/zero.py and deepspeed_config.py depend on."""

from __future__ import annotations

from typing import Any

import pytest

STAGES = ("zero1", "zero2", "zero3")
NOISE = 1e-6


@pytest.fixture(scope="module")
def facts(wrapper_facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [fact["deepspeed"] for fact in wrapper_facts]


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_step_equals_the_first_step_of_adam(facts: list[dict[str, Any]], stage: str) -> None:
    """There is no optimizer state and no weight has moved before it, so zero.py creates the states that it loads."""
    for fact in facts:
        assert fact[stage]["states"]["states_at_start"] == 0 and fact[stage]["states"]["moved_at_start"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_weights_are_read_by_safe_get_full_fp32_param(facts: list[dict[str, Any]], stage: str) -> None:
    assert all(fact[stage]["states"]["weights"] and all(fact[stage]["states"]["flats"]) for fact in facts)


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_every_process_has_the_full_weights_in_fp32(facts: list[dict[str, Any]], stage: str) -> None:
    assert all(fact[stage]["states"]["replicated"] for fact in facts)


def test_zero3_has_equal_parts_of_flattened_weights_and_pads_the_last(facts: list[dict[str, Any]]) -> None:
    assert all(fact["zero3"]["states"]["local"] for fact in facts)


def test_zero3_has_no_fp32_weights_of_frozen_parameters(facts: list[dict[str, Any]]) -> None:
    """GatheredParameters gives those."""
    assert all(fact["zero3"]["states"]["frozen"] and fact["zero3"]["states"]["frozen_has_none"] for fact in facts)


@pytest.mark.parametrize("stage", STAGES)
def test_the_given_optimizer_works_on_the_flat_tensors(facts: list[dict[str, Any]], stage: str) -> None:
    for fact in facts:
        assert fact[stage]["states"]["states_after"] == [True, True]
        assert fact[stage]["states"]["keys_after"] == ["exp_avg", "exp_avg_sq", "step"]


@pytest.mark.parametrize("stage", STAGES)
def test_states_of_the_second_parameter_group_must_be_linked(facts: list[dict[str, Any]], stage: str) -> None:
    """Stages 1 and 2 link those of the first group only. If this fails, zero.py need not link them any more."""
    assert any(fact[stage]["states"]["second_group_is_not_linked"] for fact in facts) == (stage != "zero3")
    assert all(fact[stage]["states"]["shape"] == [1, 5] for fact in facts)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_states_that_were_set_are_read_back_and_used(facts: list[dict[str, Any]], stage: str) -> None:
    for fact in facts:
        found = fact[stage]["states"]
        assert found["set"] and found["forward_after_set"] < 1e-4  # a sum of tens
        assert found["moved_by_a_rate_of_zero"] < NOISE and found["steps"] == [5]


def test_zero3_cannot_set_full_weights_that_do_not_divide_by_the_processes(facts: list[dict[str, Any]]) -> None:
    """So zero.py sets local ones. If this fails, it need not."""
    assert any(fact["zero3"]["states"]["full_does_not_divide"] for fact in facts)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_sums_over_micro_batches_and_means_over_processes(
    facts: list[dict[str, Any]], stage: str
) -> None:
    """set_gradient_accumulation_boundary marks the end of a step; with scale_wrt_gas=False nothing is divided."""
    for fact in facts:
        steps = fact[stage]["steps"]
        assert steps["plain"] < NOISE
        assert steps["plain_norm"][0] == pytest.approx(steps["plain_norm"][1], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_is_applied_and_returns_the_norm_before_clipping(facts: list[dict[str, Any]], stage: str) -> None:
    for fact in facts:
        steps = fact[stage]["steps"]
        assert steps["clipped"] < NOISE and steps["applied"]
        assert steps["clipped_norm"][0] == pytest.approx(steps["clipped_norm"][1], rel=1e-5)
        assert steps["clipped_norm"][0] > 1  # more than the limit, or nothing was clipped


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_gradient_on_one_process_is_skipped_on_both(facts: list[dict[str, Any]], stage: str) -> None:
    for fact in facts:
        steps = fact[stage]["steps"]
        assert steps["applied_with_nan"] is False and steps["moved_by_nan"] < NOISE
        assert steps["applied_after_nan"] is True and steps["after_nan"] < NOISE


def test_an_optimizer_that_deepspeed_does_not_know_must_be_allowed(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["rest"]["unknown_optimizer"] and fact["rest"]["unknown_refused"]


def test_deepspeed_knows_the_name_that_disables_shared_memory(
    facts: list[dict[str, Any]],
) -> None:
    assert all(fact["rest"]["knows_shared_memory"] for fact in facts)


def test_autocast_computes_in_bf16_and_leaves_the_weights_in_fp32(facts: list[dict[str, Any]]) -> None:
    assert all(fact["rest"]["autocast"] == ["torch.bfloat16", "torch.float32", "torch.float32"] for fact in facts)


def test_groups_of_deepspeed_have_their_own_timeout_until_it_is_set(facts: list[dict[str, Any]]) -> None:
    """The default group's is 77 s; those of DeepSpeed have half an hour, so zero.py sets theirs."""
    for fact in facts:
        assert fact["rest"]["timeouts"] == [77.0, 1800.0]
        assert fact["rest"]["timeouts_set"] == [154.0]
