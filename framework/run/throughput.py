"""How fast a run trains: exams, images, tokens and floating-point operations per second, waiting, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from framework.exam import PAD, Batch
from framework.runtime.step_parts import step_part

T = TypeVar("T")

# Dense peak of bf16 and fp16 matrix products, in TFLOP/s, by a part of the name that CUDA gives the device. The first
# that fits counts. From NVIDIA's data sheets.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}


class Throughput:
    """Rates since the last record, of all processes together.

    Images and tokens are those of this process times the processes. Floating-point operations are those of matrix
    products and convolutions in the first step of the run, forward and backward.

    Args:
        precision: fp32, bf16 or fp16.
    """

    def __init__(self, device: torch.device, processes: int = 1, precision: str = "fp32") -> None:
        self.device, self.processes = device, processes
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peaks = [peak for part, peak in PEAK_TFLOPS.items() if part in name]
        self.peak_tflops = peaks[0] if peaks and precision != "fp32" else None
        self.step_tflop: float | None = None  # of one process
        self.start()

    def start(self) -> None:
        """Starts to measure; called when training continues after something else."""
        self.started, self.steps, self.waited = time.perf_counter(), 0, 0.0
        self.images = self.tokens = self.places = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of what is done inside, such as saving."""
        paused = time.perf_counter()
        yield
        self.started += time.perf_counter() - paused

    def timed(self, steps: Iterator[T]) -> Iterator[T]:
        """The items of `steps`; the time until each is ready counts as waiting for data."""
        while True:
            asked = time.perf_counter()
            with step_part("data wait"):
                item = next(steps, None)
            self.waited += time.perf_counter() - asked
            if item is None:
                return
            self.steps += 1
            yield item

    @contextmanager
    def counted(self, micro_batches: Sequence[Batch]) -> Iterator[None]:
        """Counts a step that runs inside.

        Args:
            micro_batches: of the step, on the host.
        """
        for batch in micro_batches:
            self.images += int(batch.view_mask_BV.count_nonzero())
            self.tokens += int((batch.report_BT != PAD).count_nonzero())
            self.places += batch.report_BT.numel()
        if self.step_tflop is not None:
            yield
            return
        # torch.compile would give up on a task that it first meets under the counter.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self.step_tflop = counter.get_total_flops() / 1e12

    def since_last(self, batch_size: int) -> dict[str, float]:
        """Values by name; seconds are per step. Measuring starts again."""
        elapsed, steps = time.perf_counter() - self.started, max(1, self.steps)
        seconds, all_seconds = elapsed / steps, elapsed / self.processes
        values = {
            "exams_per_s": batch_size / seconds,
            "step_s": seconds,
            "data_wait_s": self.waited / steps,
            "memory_gib": peak_memory_gib(self.device),
        }
        if self.places:
            values |= {
                "images_per_s": self.images / all_seconds,
                "tokens_per_s": self.tokens / all_seconds,
                "padding_share": 1 - self.tokens / self.places,
            }
        if self.step_tflop:
            values["tflop_per_s"] = self.step_tflop * self.processes / seconds
            if self.peak_tflops is not None:
                values["mfu"] = self.step_tflop / seconds / self.peak_tflops
        self.start()
        return values


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process: of tensors on a GPU, else of the process on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
