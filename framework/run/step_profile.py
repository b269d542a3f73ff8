"""`train.profile`: a trace of a few steps, and a page of text with where their time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framework.runtime.console import print0
from framework.runtime.files import atomic_write
from framework.runtime.step_parts import PARTS

FOLDER = "profile"  # in a run's folder
SKIPPED, STEPS = 3, 5  # the first steps allocate memory and choose kernels
ROWS = 15  # operators on the page
COMMUNICATION = ("c10d::", "nccl:", "gloo:")


class StepProfile:
    """Profiles steps 4 to 8 of this process. Writes `profile/*.pt.trace.json.gz`, which TensorBoard and
    ui.perfetto.dev open, and `profile/summary.txt`.

    Args:
        run: the run's folder.
        head: of the page: what was profiled.
    """

    def __init__(self, run: Path, head: str) -> None:
        from torch.profiler import profile, schedule

        self.folder, self.head, self.done = run / FOLDER, head, False
        self.profiler = profile(
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=STEPS, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self.profiler.start()

    def step(self) -> None:
        """Called after each step."""
        if not self.done:
            self.profiler.step()
            if self.profiler.step_num >= SKIPPED + STEPS:
                self.close()

    def close(self) -> None:
        """Ends the profile, which of a short run has fewer steps."""
        if not self.done:
            self.done = True
            self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        from torch.profiler import tensorboard_trace_handler

        self.folder.mkdir(exist_ok=True)
        tensorboard_trace_handler(str(self.folder), "steps", use_gzip=True)(profiler)
        averages = profiler.key_averages()
        on_device = any(event.self_device_time_total for event in averages)
        by_self = f"self_{'device' if on_device else 'cpu'}_time_total"
        page = [self.head, "", *_table(averages), "", averages.table(sort_by=by_self, row_limit=ROWS)]
        atomic_write(self.folder / "summary.txt", "\n".join(page))
        print0(f"profile of steps in {self.folder / 'summary.txt'}")


def _table(averages: Any) -> list[str]:
    """Milliseconds a step of each part, on the host and on the device, where it works after the host."""
    host: dict[str, float] = dict.fromkeys((*PARTS, "communication"), 0.0)
    device = dict(host)
    steps = whole = 0.0
    for event in averages:
        if event.key.startswith("ProfilerStep") and not event.device_time_total:
            steps, whole = steps + event.count, whole + event.cpu_time_total
        name = "communication" if event.key.startswith(COMMUNICATION) else event.key
        if name in host:
            host[name] += event.cpu_time_total
            device[name] += event.device_time_total
    steps = max(steps, 1)
    whole = max(whole, sum(host[name] for name in PARTS))
    rows = [(name, host[name], device[name]) for name in PARTS]
    rows.append(("other", whole - sum(host[name] for name in PARTS), 0.0))
    lines = [f"{int(steps)} steps{'host, ms a step':>26}{'share':>8}{'device, ms a step':>20}"]
    for name, of_host, of_device in rows:
        share = of_host / whole if whole else 0.0
        lines.append(f"{name:17}{of_host / steps / 1e3:17.2f}{share:8.1%}{of_device / steps / 1e3:20.2f}")
    lines.append(f"{'a step':17}{whole / steps / 1e3:17.2f}")
    name = "communication"
    lines += ["", f"{name:17}{host[name] / steps / 1e3:17.2f}{'':8}{device[name] / steps / 1e3:20.2f}"]
    return [*lines, "Communication happens within the other parts, in part while they compute."]
