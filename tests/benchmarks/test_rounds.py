"""Rounds, rows and what is written beside them."""

from __future__ import annotations

import json
import sys
from functools import cache, lru_cache
from pathlib import Path

import pytest
import torch

from benchmarks.rounds import alternate, compare, exponent, parser, rows_of, start, write


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # `start` sets it
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def started(monkeypatch: pytest.MonkeyPatch, *words: str):
    monkeypatch.setattr(sys, "argv", ["/some/where/example.py", *words])
    parse = parser("An example.", ("cpu", "cuda"))
    parse.add_argument("--pairs", type=int, default=1000)
    return start(parse, quick={"pairs": 10})


def test_works_run_in_turn_after_a_run_of_each():
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = alternate(works, rounds=2)
    assert "".join(order) == "ab" * 3
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_a_ratio_above_one_means_more_of_a_rate_and_less_of_anything_else():
    values = {"ours": [4.0, 8.0, 6.0], "theirs": [2.0, 2.0, 2.0]}
    assert [row["ratio"] for row in rows_of("what", "pairs/s", values)] == [1, 3]
    seconds = rows_of("what", "s", values)[1]
    assert (seconds["ratio_low"], seconds["ratio_high"]) == (0.25, 0.5)
    assert (seconds["low"], seconds["median"], seconds["high"]) == (2, 2, 2)


def test_a_rate_is_the_amount_over_the_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.rounds.alternate", lambda works, rounds: {"ours": [0.5], "theirs": [2.0]})
    ours, theirs = compare("what", "pairs", 100, {"ours": list, "theirs": list}, rounds=1)
    assert (ours["median"], theirs["median"], theirs["ratio"], theirs["unit"]) == (200, 50, 4, "pairs/s")


def test_a_run_finds_no_bounded_cache_of_ours_filled():
    calls = []

    def work(number: int) -> None:
        calls.append(number)

    remembered = {}
    for module, keep in (("framework.text", lru_cache(maxsize=8)), ("framework.text", cache), ("other", lru_cache(8))):
        function = keep(lambda name=f"{module} {keep}": work(name))
        function.__module__ = module
        remembered[f"{module} {keep}"] = function
    alternate({"ours": lambda: [function() for function in remembered.values()]}, rounds=2)
    assert sorted(map(calls.count, remembered)) == [1, 1, 3]


def test_the_exponent_of_a_square_is_two():
    assert exponent({10: 3.0, 20: 12.0, 40: 48.0}) == pytest.approx(2)


def test_quick_sizes_yield_to_the_command_line(monkeypatch: pytest.MonkeyPatch):
    assert (started(monkeypatch).pairs, started(monkeypatch).rounds) == (1000, 5)
    assert (started(monkeypatch, "--quick").pairs, started(monkeypatch, "--quick").rounds) == (10, 1)
    assert started(monkeypatch, "--quick", "--pairs", "20").pairs == 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit) as stopped:
        started(monkeypatch, "--device", "cuda")
    assert stopped.value.code == 2


@pytest.mark.parametrize("out", [["--out", "{}"], ["--out={}"]])
def test_a_result_states_the_command_without_the_place_of_the_file(
    out: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "folder" / "example.json"
    options = started(monkeypatch, "--pairs", "20", *(word.format(file) for word in out), "--only", "a b")
    write([], options, ("numpy",), more=[1])
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["command"] == "python -m benchmarks.example --pairs 20 --only 'a b'"
    assert (result["benchmark"], result["device"], result["more"]) == ("example", "cpu", [1])
    assert {"python", "torch", "numpy"} == set(result["versions"])
    assert result["cores_used_by_others"] >= 0
