"""A cell is trained by one process at a time, and by another only when that one is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from framework.grid import lease
from framework.grid.lease import DEAD_S, holder_of, take

TAKES = """
import sys, time
from pathlib import Path
from framework.grid.lease import take
go = Path(sys.argv[1]) / "go"
while not go.exists():
    pass
print(take(Path(sys.argv[1]) / "cell") is not None, flush=True)
time.sleep(60)
"""


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return tmp_path / "cell"


def elsewhere(path: Path, age: float) -> None:
    """Turns a lease into one of another machine, last touched so long ago."""
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "machine": "other"}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_lease_is_held_until_it_is_released(cell):
    held = take(cell)
    assert held is not None and holder_of(cell).pid == os.getpid()
    assert take(cell) is None
    held.release()
    assert holder_of(cell) is None and list(cell.iterdir()) == []
    assert take(cell) is not None


def test_one_of_many_simultaneous_processes_gets_the_lease(tmp_path):
    takers = [
        subprocess.Popen([sys.executable, "-c", TAKES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    time.sleep(1.5)  # for all of them to be ready
    (tmp_path / "go").touch()
    try:
        assert sorted(taker.stdout.readline().strip() for taker in takers) == ["False"] * 5 + ["True"]
    finally:
        for taker in takers:
            taker.kill()
            taker.wait()


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path, cell):
    (tmp_path / "go").touch()
    taker = subprocess.Popen([sys.executable, "-c", TAKES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert taker.stdout.readline().strip() == "True"
    assert take(cell) is None
    taker.kill()  # not waited for: a zombie is as dead
    time.sleep(0.2)
    assert holder_of(cell) is None and take(cell) is not None
    taker.wait()


def test_a_process_with_a_reused_pid_is_not_the_holder(cell):
    held = take(cell)
    fields = json.loads(held.path.read_text())
    held.path.write_text(json.dumps({**fields, "start_time": fields["start_time"] - 100}))
    assert holder_of(cell) is None


def test_a_holder_on_another_machine_is_dead_without_a_recent_heartbeat(cell):
    held = take(cell)
    elsewhere(held.path, age=DEAD_S - 30)
    assert holder_of(cell) is not None and take(cell) is None
    elsewhere(held.path, age=DEAD_S + 30)
    assert holder_of(cell) is None and take(cell) is not None


def test_a_heartbeat_renews_the_lease_and_returns_false_if_it_is_lost(cell):
    held = take(cell)
    elsewhere(held.path, age=DEAD_S + 30)
    assert held.beat()
    assert holder_of(cell) is not None
    elsewhere(held.path, age=DEAD_S + 30)
    assert take(cell) is not None
    assert not held.beat()


def test_a_former_holder_does_not_release_the_new_lease(cell):
    held = take(cell)
    elsewhere(held.path, age=DEAD_S + 30)
    new = take(cell)
    held.release()
    assert new is not None and new.beat() and take(cell) is None


def test_a_dead_holder_on_another_machine_is_waited_for(cell, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "DEAD_S", 1.0)
    held = take(cell)
    elsewhere(held.path, age=0)
    start = time.monotonic()
    assert lease.take_when_dead(cell) is not None
    assert time.monotonic() - start > 0.8


def test_a_live_holder_on_another_machine_is_not_waited_for(cell, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    held = take(cell)
    elsewhere(held.path, age=0)
    beats = threading.Timer(0.1, held.beat)
    beats.start()
    assert lease.take_when_dead(cell) is None
    beats.join()


def test_machines_of_one_name_are_distinguished():
    assert lease.this_machine().count("/") == 2
