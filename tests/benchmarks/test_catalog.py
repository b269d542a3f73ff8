"""Every benchmark is found, and runs at its quick sizes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

from benchmarks.catalog import RESULTS, benchmarks


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True)


def check_rows(rows: list[dict[str, Any]]) -> None:
    assert rows
    assert len({(row["what"], row["who"]) for row in rows}) == len(rows)
    for row in rows:
        numbers = [row[key] for key in ("ratio_low", "ratio", "ratio_high")]
        assert 0 < numbers[0] <= numbers[1] <= numbers[2] < math.inf, row
        assert 0 < row["low"] <= row["median"] <= row["high"] < math.inf, row
        assert row["unit"]
    for _, group in groupby(rows, key=lambda row: row["what"]):
        assert next(group)["ratio"] == 1  # the first is ours


@pytest.mark.parametrize("name", benchmarks())
def test_a_benchmark_runs_at_its_quick_sizes(name: str, tmp_path: Path) -> None:
    done = run(name, "--quick", "--threads", "1", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert result["benchmark"] == name
    assert result["command"] == f"python -m benchmarks.{name} --quick --threads 1"
    check_rows(result["rows"])
    assert all(math.isfinite(fit["exponent"]) for fit in result.get("fits", ()))


def test_machinery_is_no_benchmark() -> None:
    found = benchmarks()
    assert {"decoding", "scoring", "growth"} <= found.keys()
    assert not {"__main__", "catalog", "page", "phantom_sheet", "reports", "rounds"} & found.keys()
    assert found["decoding"].devices == ("cpu", "cuda") and found["scoring"].devices == ("cpu",)
    assert found["decoding"].result("cpu").name == "decoding.json"
    assert found["decoding"].result("cuda").name == "decoding-cuda.json"


def test_every_result_belongs_to_a_benchmark() -> None:
    known = {each.result(device) for each in benchmarks().values() for device in each.devices}
    assert set(RESULTS.glob("*")) <= known


def test_an_unknown_benchmark_stops_the_run() -> None:
    done = run("no_such_benchmark")
    assert done.returncode == 2 and "no_such_benchmark" in done.stderr and "decoding" in done.stderr


def test_a_failing_benchmark_is_named() -> None:
    done = run("startup", "--no-such-option")
    assert done.returncode == 1 and done.stderr.endswith("failed: startup\n")
