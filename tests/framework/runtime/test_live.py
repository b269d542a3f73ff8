"""What moves on a terminal, and what is printed while it does."""

from __future__ import annotations

import os
import sys

import pytest
from screen import Screen, on_screen

from framework.runtime import live
from framework.runtime.console import print0
from framework.runtime.live import ProgressBar, time_text, write_unbuffered


def bar_of(screen: Screen) -> str:
    """The last row, which must be the bar and fit the terminal."""
    assert screen.rows[-1].startswith("exams") and len(screen.rows[-1]) < screen.columns, screen.rows
    return screen.rows[-1]


def test_lines_and_warnings_stand_above_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    with ProgressBar((), total=4, text="exams") as bar:
        print0("a line")
        bar.update()
        print("a warning\nof two lines", file=sys.stderr)
        bar.update()
        assert screen.rows[:-2] == ["a line", "a warning", "of two lines"] and "2/4" in bar_of(screen)
    assert screen.rows == ["a line", "a warning", "of two lines", ""]


def test_lines_of_other_programs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    with ProgressBar((), total=4, text="exams") as bar:
        for number in range(3):
            screen.write(f"{number} of a library in C\nand its second line\n")
            bar.update()
    kept = [row for row in screen.rows[:-1] if row]
    assert [row[:22] for row in kept[::2]] == [f"{number} of a library in C" for number in range(3)]
    assert all(row.startswith("and its second line") for row in kept[1::2])


def test_a_handler_of_a_signal_writes_above_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    monkeypatch.setattr(os, "write", lambda number, data: screen.write(data.decode()))
    with ProgressBar((), total=4, text="exams") as bar:
        screen.write("^C")  # as a terminal shows it
        write_unbuffered("\nSIGINT: saving\n")
        assert screen.rows == ["^C", "SIGINT: saving", ""]
        bar.update()
        assert screen.rows[:2] == ["^C", "SIGINT: saving"] and "1/4" in bar_of(screen)


def test_the_streams_are_those_before_once_the_display_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    bar = ProgressBar((), total=4, text="exams")
    assert sys.stderr is not screen and sys.stdout.isatty()
    bar.close()
    bar.close()
    assert sys.stdout is sys.stderr is screen
    bar.update()
    assert screen.rows == [""]


def test_an_error_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    with pytest.raises(ValueError, match="wrong"):
        for _ in ProgressBar(range(3), total=3, text="exams"):
            raise ValueError("wrong")
    print("after", file=sys.stderr)
    assert screen.rows == ["after", ""]


def test_a_display_inside_another_one_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    with ProgressBar((), total=4, text="exams") as outer:
        assert list(ProgressBar(range(3), total=3, text="inner")) == [0, 1, 2]
        outer.update()
        assert "1/4" in bar_of(screen)
    assert "inner" not in screen.getvalue()


def test_it_is_drawn_only_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    monkeypatch.setattr(live, "REFRESH_S", 60.0)
    with ProgressBar((), total=4, text="exams") as bar:
        for _ in range(3):
            bar.update()
        assert "0/4" in bar_of(screen)


def test_other_processes_erase_it_and_draw_none(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_screen(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    with ProgressBar((), total=4, text="exams") as bar:
        bar.update()
        screen.write("\nof the main process\r\x1b[1A")
        print("rank 1: a warning", file=sys.stderr)
        assert screen.rows == ["rank 1: a warning", ""]


@pytest.mark.parametrize("name, value", [("CI", "true"), ("NO_COLOR", "1"), ("TERM", "dumb")])
def test_nothing_moves_where_the_environment_asks_for_lines(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    screen = on_screen(monkeypatch)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(live, "LINE_S", 0.0)
    bar = ProgressBar(range(2), total=4, text="exams", done=2)
    list(bar)
    assert screen.rows[1:] == ["exams  3/4  75 %  0 s left", "exams  4/4  100 %  0 s left", ""]
    assert "\x1b" not in screen.getvalue()


def test_a_file_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in ProgressBar(range(3), total=3, text="exams"):
        print0("a line")
    captured = capsys.readouterr()
    assert captured.out == "a line\n" * 3 and captured.err == ""


def test_times_have_units() -> None:
    assert [time_text(seconds) for seconds in (4.6, 59.4, 60, 754, 3599, 11_100, None)] == [
        "5 s", "59 s", "1.0 min", "12.6 min", "1 h 00 min", "3 h 05 min", "-",
    ]  # fmt: skip
