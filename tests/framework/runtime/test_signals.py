"""Signals and the files SAVE and STOP become requests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.runtime import signals as module
from framework.runtime.errors import Stopped
from framework.runtime.signals import SAVE, SIGNALS, STOP, StopSignals


@pytest.fixture
def requests() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    requests = StopSignals()
    requests.listen()
    yield requests
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)  # so that a Ctrl-C ends these tests normally


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_a_signal_ends_the_run_at_once(requests: StopSignals, number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=number.name):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_during_training_a_signal_waits_for_the_next_step(
    requests: StopSignals, tmp_path: Path, number: signal.Signals
) -> None:
    requests.watch(tmp_path)
    assert requests.pending() == 0
    signal.raise_signal(number)
    assert requests.pending() == STOP and requests.reason == number.name


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        requests = StopSignals()
        requests.listen()
        requests.watch(tmp_path)
        signal.raise_signal(signal.SIGHUP)
        assert requests.pending() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)


def test_other_signals_do_not_hide_the_first(requests: StopSignals, tmp_path: Path) -> None:
    requests.watch(tmp_path)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    assert requests.reason == "SIGUSR1"


def test_a_child_process_ignores_the_signals_of_its_parent(requests: StopSignals, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        try:
            # Not yet training: in the process itself this would raise.
            signal.raise_signal(signal.SIGUSR1)
            os._exit(0 if requests.reason is None else 1)
        except BaseException:
            os._exit(1)  # or the child would continue with the tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_files_save_and_stop_are_detected_and_save_is_removed(
    requests: StopSignals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.0)
    requests.watch(tmp_path)
    (tmp_path / "SAVE").touch()
    assert requests.pending() == SAVE
    requests.done(SAVE)
    assert not (tmp_path / "SAVE").exists() and requests.pending() == 0
    (tmp_path / "SAVE").touch()
    (tmp_path / "STOP").touch()
    assert requests.pending() == STOP and requests.reason == str(tmp_path / "STOP")


def test_the_folder_is_not_checked_at_every_step(
    requests: StopSignals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 3600.0)
    requests.watch(tmp_path)
    requests.pending()
    (tmp_path / "STOP").touch()
    assert requests.pending() == 0
    monkeypatch.setattr(module, "POLL_S", 0.0)
    assert requests.pending() == STOP


@pytest.mark.parametrize(("allowed", "left"), [("0", False), ("3", True)])
def test_a_file_stop_remains_only_under_a_launcher_that_restarts_processes(
    requests: StopSignals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, left: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", allowed)
    requests.watch(tmp_path)
    assert requests.why() == "a signal to another process"
    assert (tmp_path / "STOP").exists() == left
