"""What is printed of the scores of a split."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from framework.scoring.table import BASELINES, HIGH, LABELS, LOW, PRINTED, print_scores


def test_the_table_fits_100_columns_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"bleu_4": 0.5, "rouge_l": 0.5, "cider": 10.0, "findings_f1": 0.5, "length": 1.0}
    scores = {name: {"exams": 2000, "different_reports": 1000, **values} for name in LABELS}
    scores |= {LOW: values, HIGH: values}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    print_scores("test", scores, "words")
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("reports from"))
    table = lines[start : start + 2 + len(LABELS)]
    assert table[0].split()[2:] == ["different", *PRINTED]
    assert len(table) == 2 + len(LABELS), "each row is a line"
    assert [line.split("  ")[0] for line in table[2:]] == list(LABELS.values())
    assert max(map(cell_len, table)) <= 100
    assert "1000 of 2000" in table[2] and set(BASELINES) <= set(LABELS)
