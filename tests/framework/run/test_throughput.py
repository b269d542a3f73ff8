"""How fast a run trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.exam import Batch
from framework.run import throughput as module
from framework.run.throughput import Throughput


def test_the_time_of_a_save_is_no_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
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


def batch_of(views: list[list[bool]], report: list[list[int]]) -> Batch:
    return Batch(["a", "b"], torch.zeros(2, 2, 1, 8, 8), torch.tensor(views), torch.tensor(report))


def test_images_tokens_and_padding_are_counted_without_black_views_and_over_all_processes() -> None:
    throughput = Throughput(torch.device("cpu"), processes=2)
    with throughput.counted([batch_of([[True, True], [True, False]], [[1, 5, 2, 0], [1, 2, 0, 0]])]):
        pass
    throughput.started, throughput.steps = throughput.started - 10, 1
    values = throughput.since_last(4)
    assert values["images_per_s"] == pytest.approx(2 * 3 / 10, rel=0.01)
    assert values["tokens_per_s"] == pytest.approx(2 * 5 / 10, rel=0.01)
    assert values["padding_share"] == 3 / 8


def test_operations_are_counted_once_forward_and_backward() -> None:
    throughput, layer, batch = Throughput(torch.device("cpu")), nn.Linear(16, 32, bias=False), batch_of([], [])
    with throughput.counted([batch]):
        layer(torch.ones(4, 16, requires_grad=True)).sum().backward()
    assert throughput.step_tflop == 3 * 2 * 4 * 16 * 32 / 1e12
    with throughput.counted([batch]):
        layer(torch.ones(400, 16)).sum().backward()
    assert throughput.step_tflop == 3 * 2 * 4 * 16 * 32 / 1e12


def test_mfu_is_the_share_of_the_peak_of_a_known_gpu_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    monkeypatch.setattr(module, "peak_memory_gib", lambda device: 1.0)
    throughput = Throughput(torch.device("cuda"), 2, "bf16")
    throughput.step_tflop, throughput.started, throughput.steps = 378.0, throughput.started - 10, 10
    values = throughput.since_last(8)
    assert values["tflop_per_s"] == pytest.approx(2 * 378, rel=0.01) and values["mfu"] == pytest.approx(0.5, rel=0.01)
    assert Throughput(torch.device("cuda"), 2, "fp32").peak_tflops is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Unknown GPU")
    assert Throughput(torch.device("cuda"), 2, "bf16").peak_tflops is None
