"""The search space: its problems, labels and random draws."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from framework.grid.cells import fingerprint
from framework.grid.space import Choices, Range, Space, label_of, random_trials, read_space

LR, LAYERS, KIND = "optimizer.lr", "model.decoder.layers", "distiller"
SPACE: Space = {LR: Range(1e-4, 1e-1, log=True), LAYERS: Range(1, 6)}
SMALL: Space = {LAYERS: Range(1, 4), KIND: Choices(({"name": "none"}, {"name": "lda", "topics": 18}), ("none", "lda"))}


def read(keys: dict[str, Any]) -> tuple[Space, dict[tuple[str | int, ...], str]]:
    """The space, and the code of the problem at each place."""
    space, found = read_space(keys)
    return space, {at: problem.code for at, problem in found}


@pytest.mark.parametrize(
    ("spec", "at", "code"),
    [
        ({"low": 3, "high": 3}, (), "out-of-range"),
        ({"low": 0.0, "high": 1.0, "log": True}, ("low",), "out-of-range"),
        ({"low": 1, "hihg": 4}, ("hihg",), "unknown-key"),
        ({"low": 1, "hihg": 4}, ("high",), "missing-key"),
        ({"min": 1, "max": 4}, ("low",), "missing-key"),
        ({"low": True, "high": 4}, ("low",), "wrong-type"),
        ({"low": 1, "high": "4"}, ("high",), "wrong-type"),
        ({"low": 1, "high": math.inf}, ("high",), "out-of-range"),
        ({"low": 1, "high": 4, "log": 1}, ("log",), "wrong-type"),
        ({"low": 1, "high": 8, "step": 3}, ("step",), "does-not-divide"),
        ({"low": 1, "high": 4, "step": 0}, ("step",), "out-of-range"),
        ({"low": 1, "high": 9, "step": 2, "log": True}, ("step",), "conflicting-settings"),
        ({"low": 1.0, "high": 1.0 + 1e-15}, (), "out-of-range"),
        ([], (), "missing-key"),
        ({}, (), "missing-key"),
        ([1, 2, 1], (2,), "duplicate-name"),
        ([1, "1"], (), "duplicate-name"),
        (0.3, (), "wrong-type"),
    ],
)
def test_a_problem_of_the_space_is_reported_with_its_place(spec: Any, at: tuple[str, ...], code: str) -> None:
    space, codes = read({LR: spec, LAYERS: {"low": 1, "high": 4}})
    assert codes[(LR, *at)] == code
    assert space == {LAYERS: Range(1, 4)}


def test_all_problems_are_reported_at_once() -> None:
    _, codes = read({LR: {"low": "x", "high": None, "lgo": True}, KIND: []})
    assert set(codes) == {(LR, "low"), (LR, "high"), (LR, "lgo"), (KIND,)}
    assert read({})[1] == {(): "missing-key"}


def test_ranges_and_choices_are_read() -> None:
    plugins = [{"name": "none"}, {"name": "lda", "topics": 5}, {"name": "lda", "topics": 18}]
    space, codes = read(
        {
            "a": {"low": 1, "high": 4},
            "b": {"low": 0, "high": 1, "step": 0.25},
            "c": plugins,
            "d": {"slow": 1, "fast": 4},
            "e": {"low": 1e-4, "high": 1e-2, "log": True, "step": None},
        }
    )
    assert not codes
    assert space["a"] == Range(1, 4) and space["a"].is_integer
    assert space["b"] == Range(0, 1, 0.25) and not space["b"].is_integer
    assert space["c"] == Choices(tuple(plugins), ("none", "lda topics=5", "lda topics=18"))
    assert space["d"] == Choices((1, 4), ("slow", "fast"))
    assert space["e"] == Range(1e-4, 1e-2, log=True)


def test_a_label_is_short_and_unambiguous() -> None:
    space: Space = {LR: Range(1e-4, 1e-2, log=True), LAYERS: Range(1, 4), "model.encoder.layers": Range(1, 4), **SMALL}
    assert label_of(LR, 0.0023, space) == "lr=0.0023"
    assert label_of(LAYERS, 3, space) == "decoder.layers=3"
    assert label_of(KIND, {"name": "lda", "topics": 18}, space) == "distiller=lda"
    assert Choices((1, True), ("one", "yes")).label(True) == "yes"


# Random draws


def drawn(part: Range, trials: int = 300) -> list[Any]:
    return [values["x"] for values in random_trials({"x": part}, trials, seed=3)]


def test_draws_have_the_range_and_type_of_their_key() -> None:
    assert sorted(drawn(Range(1, 6))) == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(value, int) for value in drawn(Range(1, 6)))
    assert sorted(drawn(Range(0.1, 0.5, 0.1))) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert sorted(drawn(Range(2, 8, 3))) == [2, 5, 8]
    for part in (Range(0, 0.5), Range(0.12345, 0.12346), Range(1.2345e-4, 1e-1, log=True)):
        values = drawn(part)
        assert (part.at(0.0), part.at(1.0)) == (part.low, part.high)
        assert len(values) == 300 and all(part.low <= value <= part.high for value in values)
        assert all(isinstance(value, float) and part.round(value) == value for value in values)
        assert {str(float(part.label(value))) for value in values} == {str(value) for value in values}


def test_a_logarithmic_range_draws_each_power_of_ten_as_often() -> None:
    powers = Counter(math.floor(math.log10(value)) for value in drawn(Range(1e-4, 1e-1, log=True)))
    assert set(powers) == {-4, -3, -2} and min(powers.values()) > 70
    integers = Range(1, 1000, log=True)
    assert [integers.at(fraction) for fraction in (0.0, 0.5, 1.0)] == [1, 22, 1000]


def test_more_trials_continue_the_sequence_whatever_the_order_of_the_keys() -> None:
    few, many = random_trials(SPACE, 5, seed=1), random_trials(dict(reversed(SPACE.items())), 20, seed=1)
    assert many[:5] == few
    assert random_trials(SPACE, 5, seed=2) != few


def test_random_trials_differ_and_cover_a_small_space() -> None:
    trials = random_trials(SMALL, 100, seed=1)
    assert len(trials) == 8 == len({fingerprint(values) for values in trials})


def test_a_trial_can_be_changed_without_changing_the_next() -> None:
    part = SMALL[KIND]
    part.at(0.9)["topics"] = 5
    assert part.at(0.9) == {"name": "lda", "topics": 18}


def test_a_random_search_needs_no_optuna() -> None:
    code = "import sys, framework.grid.space as s; s.random_trials({'x': s.Range(1, 4)}, 2, 1); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded and not {"optuna", "torch"} & set(loaded)
