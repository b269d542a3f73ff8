"""Which errors say that memory is exhausted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from framework.runtime.memory import is_beyond_memory, is_out_of_memory


def test_an_allocation_that_fails_is_out_of_memory() -> None:
    for allocate in (lambda: np.empty(2**60, np.uint8), lambda: torch.empty(2**55)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value) and is_beyond_memory(caught.value)


def test_a_number_that_overflows_is_out_of_memory_only_as_the_size_of_a_part() -> None:
    """A loss that computes exp(1000) in a step has not used up the memory."""
    with pytest.raises(OverflowError) as caught:
        math.exp(1000)
    assert is_beyond_memory(caught.value) and not is_out_of_memory(caught.value)
