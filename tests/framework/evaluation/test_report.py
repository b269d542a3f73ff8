"""Pages that are drawn again, and pages that compare runs: on the same exams only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import launch, problem
from html_page import Page, check_offline

from framework import build
from framework.evaluation.report import compare_runs, draw_run
from framework.recipe import Recipe
from framework.runtime.errors import UserError


@pytest.fixture
def two(smoke_run: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A run, and one of the same exams with a worse report for each."""
    monkeypatch.chdir(work)  # its image cache
    runs = [shutil.copytree(smoke_run, tmp_path / "smoke" / name) for name in ("one", "two")]
    path = runs[1] / "predictions" / "test.jsonl"
    rows = [{**json.loads(line), "prediction": "A scar."} for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return runs


def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(recipe: Recipe) -> None:
        raise UserError("no-such-file", "no such folder")

    monkeypatch.setattr(build, "build_dataset", missing)


def test_a_page_is_drawn_again_as_it_was(two: list[Path]) -> None:
    run = two[0]
    before = (run / "report.html").read_text("utf-8").replace("smoke / first", "smoke / one")
    (run / "report.html").unlink()
    assert draw_run(run) == run / "report.html"
    assert (run / "report.html").read_text("utf-8") == before


def test_without_its_data_a_run_has_a_page_without_images(
    two: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_data(monkeypatch)
    page = Page(draw_run(two[0]).read_text("utf-8"))
    check_offline(page)
    assert len(page.all("article", "exam")) == 16 and not page.all("div", "views")
    assert "no images" in capsys.readouterr().out


def test_runs_are_compared_by_paired_differences(two: list[Path], tmp_path: Path) -> None:
    page = Page(compare_runs(two, tmp_path / "compare.html").read_text("utf-8"))
    check_offline(page)
    assert "smoke / two is worse in" in page.text and "bootstrap over patients" in page.text
    assert "The model writes one report for all 16 exams" in page.text
    assert len(page.all("article", "exam")) == 16 and len(page.all("template", "listed")) == 16
    again = Page(compare_runs([two[0], two[0]], tmp_path / "same.html").read_text("utf-8"))
    assert "neither better nor worse in any score" in again.text and "+0.000 [+0.000, +0.000]" in again.text


def test_without_the_data_exams_are_resampled(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_data(monkeypatch)
    assert "bootstrap over exams" in compare_runs(two, tmp_path / "compare.html").read_text("utf-8")


@pytest.mark.parametrize("change", ["reference", "id", "fewer"])
def test_runs_of_other_test_exams_are_refused(change: str, two: list[Path], tmp_path: Path) -> None:
    path = two[1] / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows = rows[1:] if change == "fewer" else [{**rows[0], change: "another"}, *rows[1:]]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    with problem("exams-differ", str(two[1])):
        compare_runs(two, tmp_path / "compare.html")
    assert not (tmp_path / "compare.html").exists()


def test_a_run_without_scores_is_refused(two: list[Path]) -> None:
    (two[0] / "scores.json").unlink()
    with problem("missing-input", str(two[0])):
        draw_run(two[0])


def test_the_command_draws_a_comparison_or_refuses(two: list[Path], work: Path, tmp_path: Path) -> None:
    one, other = map(str, two)
    out = str(tmp_path / "c.html")
    assert launch("report", one, other, "--out", out, cwd=work).stdout.splitlines()[-1] == out
    for words, code in ((["report", one, one], "duplicate-name"), (["report", one, "--out", out], "ignored-setting")):
        done = launch(*words, cwd=work, check=False)
        assert done.returncode == 2 and f"[{code}]" in done.stderr
