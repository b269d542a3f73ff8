"""Details of torch's fully_shard that framework/distributed/fsdp.py depends on."""

from __future__ import annotations

from typing import Any

import pytest

NOISE = 1e-6


@pytest.fixture(scope="module")
def facts(wrapper_facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [fact["fsdp"] for fact in wrapper_facts]


def test_rows_are_sharded_as_torch_chunk_does(facts: list[dict[str, Any]]) -> None:
    """Of each parameter: number of rows, first row of this process, and how many it has; the last process has fewer."""
    first, second = (fact["rows"] for fact in facts)
    assert first["blocks.0.weight"] == [5, 0, 3] and second["blocks.0.weight"] == [5, 3, 2]
    assert first["blocks.1.bias"] == [3, 0, 2] and second["blocks.1.bias"] == [3, 2, 1]
    assert all(fact["rows_hold_the_values"] for fact in facts)


def test_a_process_without_rows_has_an_empty_shard(facts: list[dict[str, Any]]) -> None:
    first, second = (fact["rows"] for fact in facts)
    assert first["last.weight"] == [1, 0, 1] and second["last.weight"] == [1, 1, 0]


def test_parameter_names_do_not_change(facts: list[dict[str, Any]]) -> None:
    assert all(fact["same_names"] for fact in facts)


def test_to_local_is_a_view_that_forward_uses(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["local_is_a_view"] and fact["forward_sees_it"] < 1e-3  # a sum of hundreds


def test_weights_that_are_not_contiguous_are_refused(facts: list[dict[str, Any]]) -> None:
    """So fsdp.py makes them contiguous. If this fails, it need not."""
    assert all(fact["other_layouts_refused"] for fact in facts)


def test_fsdp_uses_the_default_group_and_its_timeout(facts: list[dict[str, Any]]) -> None:
    assert all(fact["timeouts"] == [77.0] for fact in facts)


def test_gradients_are_sums_over_micro_batches_and_means_over_processes(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["plain"] < NOISE and fact["plain_norm"][0] == pytest.approx(fact["plain_norm"][1], rel=1e-5)


def test_clipping_uses_the_norm_over_all_processes_as_a_dtensor(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["norm_is_sharded"] and fact["clipped"] < NOISE
        assert fact["clipped_norm"][0] == pytest.approx(fact["clipped_norm"][1], rel=1e-5)
        assert fact["clipped_norm"][0] > 1  # more than the limit, or nothing was clipped


def test_a_nan_gradient_on_one_process_shows_on_both(facts: list[dict[str, Any]]) -> None:
    assert all(fact["norm_with_nan"] == "nan" and fact["moved_by_nan"] < NOISE for fact in facts)


def test_optimizer_states_are_sharded_like_the_weights_and_the_step_is_not(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["states"] and fact["step_is_plain"] and fact["like_is_sharded"]
