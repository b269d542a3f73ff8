"""Errors of a broken connection become ProcessLost; other errors stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch.distributed as dist
from accelerate import Accelerator

from framework.distributed.heartbeat import HangMonitor
from framework.runtime.errors import ProcessLost


@dataclass
class TwoProcesses:
    """The attributes of an Accelerator that a HangMonitor reads."""

    process_index: int = 0
    num_processes: int = 2


@pytest.fixture
def hang_monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangMonitor]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    hang_monitor = HangMonitor(TwoProcesses(), timeout=1)  # type: ignore[arg-type]
    hang_monitor.at("step 12")
    yield hang_monitor
    del store


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242\nmore of it"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 60000ms for recv operation"),
        dist.DistBackendError("NCCL error: unhandled system error"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_a_broken_connection_is_a_lost_process(hang_monitor: HangMonitor, error: RuntimeError) -> None:
    # word for word
    with pytest.raises(ProcessLost, match=r"at step 12; .*resume=auto") as caught, hang_monitor:
        raise error
    assert caught.value.__cause__ is error and "more of it" not in str(caught.value)


def test_another_error_is_not_changed(hang_monitor: HangMonitor) -> None:
    own = RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x4)")
    with pytest.raises(RuntimeError) as caught, hang_monitor:
        raise own
    assert caught.value is own


def test_one_process_cannot_lose_another() -> None:
    error = RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError) as caught, HangMonitor(Accelerator(cpu=True), timeout=1):
        raise error
    assert caught.value is error
