"""Where a model looks, against the lesion's mask."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pointing
from benchmarks.pointing import chance, measure

# Two views of 2 x 2 cells; the lesion covers half of one cell of the second, with its middle.
COVER = np.array([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.5], [0.0, 0.0]]])


def attention(view: int, row: int, column: int) -> np.ndarray:
    weights = np.full(COVER.shape, 0.1)
    weights[view, row, column] = 0.3
    return weights


def test_a_peak_is_inside_the_lesion_or_at_least_in_its_view() -> None:
    found = [measure(attention(*peak), COVER, COVER > 0) for peak in ((1, 0, 1), (1, 1, 1), (0, 0, 1))]
    assert [each[:2] for each in found] == [(1, 1), (1, 0), (0, 0)]
    assert [each[2] for each in found] == pytest.approx([0.15, 0.05, 0.05])


def test_equal_weights_are_chance() -> None:
    assert chance(COVER, COVER > 0) == pytest.approx((1 / 2, 1 / 8, 1 / 16))
    assert measure(np.ones(COVER.shape), COVER, COVER > 0)[2] == pytest.approx(1 / 16)


def test_a_run_is_measured(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pointing", str(smoke_run)])
    pointing.main()
    lines = capsys.readouterr().out.splitlines()
    assert (
        "exams with a lesion" in lines[0] and [row in line for row, line in zip(pointing.ROWS, lines[2:])] == [True] * 3
    )


@pytest.mark.parametrize("word", ["mass", "nodules", "cyst", "lesion", "低回声结节", "囊肿", "无回声区"])
def test_words_that_name_a_lesion(word: str) -> None:
    assert pointing.LESION.fullmatch(word)
    assert not pointing.LESION.fullmatch(f"{word}x") and not pointing.LESION.fullmatch("massive")
