"""Every wrapper hands through a module's NamedTuple of tensors and a dict of tensors, with its gradients."""

from __future__ import annotations

from typing import Any

import pytest

WRAPPERS = ("ddp", "ddp_bf16", "fsdp", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def facts(wrapper_facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [fact["outputs"] for fact in wrapper_facts]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_return_a_named_tuple_with_a_dict_unchanged(facts: list[dict[str, Any]], wrapper: str) -> None:
    """Its type, each number format, which fields carry a gradient, and a dict without entries."""
    for fact in facts:
        found = fact[wrapper]
        assert found["type"] == "Output" and found["same_values"] and found["empty"] == {}
        assert found["fields"] == {
            "loss_sums": ["torch.float32", True],  # accelerate makes bf16 outputs fp32
            "counts": ["torch.int64", False],
            "hits": ["torch.int64", False],
            "norm": ["torch.float32", False],
        }


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradients_of_a_named_tuple_are_averaged_over_processes(facts: list[dict[str, Any]], wrapper: str) -> None:
    for fact in facts:
        assert fact[wrapper]["gradients"] < (0.01 if wrapper == "ddp_bf16" else 1e-6)
