"""Throughput counts the time of steps alone."""

from __future__ import annotations

import pytest
import torch

from framework.run import tracking
from framework.run.tracking import Throughput


def test_the_time_of_a_save_is_no_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: float(next(clock)))
    throughput = Throughput(torch.device("cpu"))  # 0
    steps = throughput.timed(iter([1, 2]))
    next(steps)  # from 1 to 2
    with throughput.paused():  # from 3 to 4
        for _ in range(10):
            next(clock)  # 4 to 13, so that the pause lasts from 3 to 14
    next(steps)  # from 15 to 16
    values = throughput.since_last(8)  # at 17, of which 11 were paused
    assert values["step_s"] == (17 - 11) / 2
    assert values["data_wait_s"] == 1.0
