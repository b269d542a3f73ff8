"""docs/benchmarks.md shows benchmarks/results, each figure with its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from benchmarks.catalog import Benchmark, benchmarks

ROWS = [
    {"what": "BLEU", "who": "ours", "unit": "pairs/s", "median": 1234.5, "low": 1000.0, "high": 1500.0},
    {"what": "BLEU", "who": "theirs", "unit": "pairs/s", "median": 12.34, "low": 10.0, "high": 15.0},
    {"what": "other", "who": "ours", "unit": "s", "median": 0.5, "low": 0.5, "high": 0.5},
]
RATIOS = [(1, 1, 1), (100.4, 90.0, 110.0), (1, 1, 1)]
ROWS = [{**row, **dict(zip(("ratio", "ratio_low", "ratio_high"), each))} for row, each in zip(ROWS, RATIOS)]
RESULT: dict[str, Any] = {
    "benchmark": "example",
    "command": "python -m benchmarks.example --threads 1",
    "date": "2026-01-02",
    "commit": "abc",
    "machine": "A processor",
    "cores": 2,
    "device": "cpu",
    "threads": 1,
    "load": 0.5,
    "cores_used_by_others": 0.25,
    "versions": {"torch": "2"},
    "rounds": 3,
    "rows": ROWS,
}
FITS = [
    {"what": "BLEU", "over": "exams", "sizes": [1, 10], "seconds": [1.0, 10.0], "exponent": 1.0, "above": False},
    {"what": "slow", "over": "exams", "sizes": [1, 10], "seconds": [1.0, 99.0], "exponent": 2.0, "above": True},
]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results with one benchmark, whose page and plots go to the same folder."""
    benchmark = Benchmark("example", "Measures things beside others.\n\nTwo of them.", ("cpu", "cuda"))
    result = Benchmark.result
    monkeypatch.setattr(Benchmark, "result", lambda self, device: result(self, device, tmp_path))
    monkeypatch.setattr(page, "benchmarks", lambda: {"example": benchmark})
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "docs" / "benchmarks.md")
    monkeypatch.setattr(page, "IMAGES", tmp_path / "docs" / "images")
    return tmp_path


def put(folder: Path, name: str = "example.json", **changed: Any) -> None:
    (folder / name).write_text(json.dumps(RESULT | changed), encoding="utf-8")


def made(folder: Path) -> str:
    assert page.main([]) == 0
    return (folder / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_committed_page_and_its_plots_show_the_committed_results() -> None:
    assert page.main(["--check"]) == 0


def test_figures_stand_with_command_machine_date_and_load(example: Path) -> None:
    put(example)
    text = made(example)
    assert "```bash\n.venv/bin/python -m benchmarks.example --threads 1\n```" in text
    assert "2026-01-02, A processor, 2 cores, 1 thread, 3 rounds; load 0.5 at the start, others 0.25 cores" in text
    shown = "| BLEU | 1,234 pairs/s (1,000 to 1,500) | theirs: 12.3 pairs/s (10.0 to 15.0) | 100x (90.0 to 110) |"
    assert shown in text
    assert "| other | 0.500 s | | |" in text
    assert "(images/example-ratio.svg)" in text and (example / "docs" / "images" / "example-ratio.svg").is_file()


def test_a_benchmark_that_was_not_run_is_missing_with_its_command(example: Path) -> None:
    put(example)
    missing = made(example).partition("## Missing")[2]
    assert ".venv/bin/python -m benchmarks example --device cuda\n" in missing
    assert ".venv/bin/python -m benchmarks example\n" not in missing
    put(example, "example-cuda.json", device="A GPU")
    assert "## Missing" not in made(example)


def test_a_changed_result_or_a_lost_plot_makes_the_page_stale(example: Path) -> None:
    put(example)
    made(example)
    assert page.main(["--check"]) == 0
    put(example, rows=ROWS[:2])
    assert page.main(["--check"]) == 1
    made(example)
    (example / "docs" / "images" / "example-ratio.svg").unlink()
    assert page.main(["--check"]) == 1


def test_a_plot_of_no_result_is_stale_and_removed(example: Path) -> None:
    put(example)
    made(example)
    put(example, rows=[ROWS[2]])
    made(example)
    assert list((example / "docs" / "images").iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"command": ""},
        {"command": "python -m benchmarks.example --quick"},
        {"command": "python -m benchmarks.other"},
        {"device": "A GPU"},
    ],
    ids=str,
)
def test_figures_without_their_command_are_refused(changed: dict[str, str], example: Path) -> None:
    put(example, **changed)
    with pytest.raises(ValueError, match=r"example\.json"):
        made(example)


def test_growth_above_linear_is_marked(example: Path) -> None:
    put(example, fits=FITS)
    text = made(example)
    assert "| BLEU | exams | 1.00 |" in text and "| slow | exams | 2.00, **more than linear** |" in text
    assert "slow: 2.00" in (example / "docs" / "images" / "example-exams.svg").read_text(encoding="utf-8")


def test_every_benchmark_has_a_section() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert [name for name in benchmarks() if f"\n## {name.capitalize()}\n" not in text] == []
