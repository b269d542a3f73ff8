"""Which reports are printed beside their references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from framework.scoring.examples import print_examples


def test_exams_with_different_references_are_printed_in_short_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = ["No mass.", "No mass.", "左乳见一低回声结节。" * 60, "A cyst. " * 20, "A mass."]
    rows = [{"id": f"e{number}", "reference": text, "prediction": "No mass."} for number, text in enumerate(references)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print_examples(tmp_path / "test.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("exam")] == ["exam e0", "exam e2", "exam e3"]
    assert max(map(cell_len, lines)) <= 100
    assert sum(line.endswith(" ...") for line in lines) == 1
    assert lines[-1] == "  generated  No mass."
