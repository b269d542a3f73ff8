"""Tables on a terminal, in a narrow one, and in a pipe."""

from __future__ import annotations

import pytest

from framework.runtime.console import print_table

HEADER = ("cell", "bleu_4", "note")
PROSE = "the mean lacks seed 2, which failed because the GPU ran out of memory"
ROWS = [("lda", "0.310 ± 0.004", PROSE), ("[none]", "0.280 ± 0.010", "")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    def of_width(columns: int) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(columns))

    return of_width


def test_a_pipe_gets_one_line_per_row_and_no_title(capsys) -> None:
    print_table(HEADER, ROWS, "title")
    assert capsys.readouterr().out.splitlines() == [
        "cell    bleu_4         note",
        f"lda     0.310 ± 0.004  {PROSE}",
        "[none]  0.280 ± 0.010",
    ]


def test_chinese_characters_are_two_columns_wide(capsys) -> None:
    print_table(("word", "n"), [("乳腺", "1"), ("ab", "12")], numeric=True)
    assert capsys.readouterr().out.splitlines() == ["word   n", "乳腺   1", "ab    12"]


def test_a_terminal_wraps_text_and_not_values(capsys, terminal) -> None:
    terminal(60)
    print_table(HEADER, ROWS, "title")
    out = capsys.readouterr().out
    assert "title" in out and "0.310 ± 0.004" in out and PROSE not in out


def test_a_terminal_too_narrow_for_the_values_gets_a_block_per_row(capsys, terminal) -> None:
    terminal(40)
    print_table(HEADER, ROWS)
    out = capsys.readouterr().out
    assert out.count("bleu_4") == 2 and "0.310 ± 0.004" in out


def test_a_table_without_rows_shows_its_header(capsys) -> None:
    print_table(HEADER, [])
    assert capsys.readouterr().out.split() == list(HEADER)
