"""What a search goes over: ranges and choices of recipe keys, checked, and values drawn from them at random."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from framework.grid.labels import fingerprint, labels_of, names_of
from framework.recipe.describe import as_yaml
from framework.registry import did_you_mean

if TYPE_CHECKING:
    from numpy.random import Generator

WORDS = ("low", "high", "step", "log")  # of a range
MEANT = {"lo", "hi", "min", "max", "minimum", "maximum", "lower", "upper", "from", "to", "start", "stop", "end"}
FINENESS = 3  # decimal places of a range's width that its draws have: 1,000 values or more
REDRAWS = 100_000  # draws in a row without a new value after which there is taken to be none
Complain = Callable[[tuple[str | int, ...], str], None]


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included. Whole ones if all that is given is whole."""

    low: float
    high: float
    step: float | None = None
    log: bool = False  # as many draws from 0.001 to 0.01 as from 0.01 to 0.1

    @property
    def whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)

    @property
    def size(self) -> int | None:
        """How many values there are; None: as good as endless."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else int((_exact(self.high) - _exact(self.low)) / _exact(step)) + 1

    def at(self, share: float) -> Any:
        """The value at a share of the way from low (0) to high (1)."""
        if self.log:
            half = 0.5 if self.whole else 0.0  # the lowest and the highest whole number come as often as their like
            low, high = math.log(self.low - half), math.log(self.high + half)
            return self.tidy(math.exp(low + share * (high - low)))
        if self.size is not None:
            return self.tidy(self.low + min(int(share * self.size), self.size - 1) * (self.step or 1))
        return self.tidy(self.low + share * (self.high - self.low))

    def tidy(self, value: float) -> Any:
        """The nearest value that can be drawn: with few digits, so that a label tells all of it."""
        if self.size is not None:
            step = _exact(self.step or 1)
            near = _exact(self.low) + step * round((_exact(value) - _exact(self.low)) / step)
            return int(near) if self.whole else float(near)
        places = FINENESS - math.floor(math.log10(self.high - self.low))
        if self.log:
            places = max(places, FINENESS - 1 - math.floor(math.log10(value)))
        return float(min(max(round(value, places), self.low), self.high))

    def label(self, value: Any) -> str:
        return str(value) if self.whole else f"{value:.12g}"


@dataclass(frozen=True)
class Choices:
    """One of several values, of any kind that a recipe may have."""

    values: tuple[Any, ...]
    labels: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, share: float) -> Any:
        return deepcopy(self.values[min(int(share * self.size), self.size - 1)])

    def label(self, value: Any) -> str:
        return self.labels[[fingerprint(one) for one in self.values].index(fingerprint(value))]

    def named(self, label: str) -> Any:
        return deepcopy(self.values[self.labels.index(label)])


Space = dict[str, Range | Choices]  # by dotted recipe key


def read_space(keys: dict[str, Any], complain: Complain) -> Space:
    """The ranges and choices of `search.keys`.

    Args:
        complain: is told each mistake: where it stands inside `keys`, and what was found and expected. A key with a
            mistake is left out of what is returned.
    """
    if not keys:
        complain((), "found no keys, expected one at least: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}")
    space: Space = {}
    for key, said in keys.items():
        problems: list[tuple[tuple[str | int, ...], str]] = []
        read = _read_range(said, problems) if _is_range(said) else _read_choices(said, problems)
        for at, text in problems:
            complain((key, *at), text)
        if read is not None and not problems:
            space[key] = read
    return space


def _is_range(said: Any) -> bool:
    """Whether a mapping was meant as a range: {min: 1, max: 4} was, and {slow: 1, fast: 4} are choices with labels."""
    return isinstance(said, dict) and bool(said) and (any(word in WORDS for word in said) or said.keys() <= MEANT)


def _read_range(said: dict[Any, Any], problems: list[tuple[tuple[str | int, ...], str]]) -> Range | None:
    for word in said:
        if word not in WORDS:
            guess = did_you_mean(str(word), WORDS)
            problems.append(
                ((word,), f"unknown word in a range.{guess} Known: {', '.join(WORDS)}, which are no labels of choices")
            )
    for word in ("low", "high"):
        if word not in said:
            problems.append(((), f"a range without {word}: expected {{low: 1e-4, high: 1e-2}}"))
    for word in ("low", "high", "step"):
        if word in said and not (word == "step" and said[word] is None) and not _is_number(said[word]):
            problems.append(((word,), f"found {_shown(said[word])}, expected a number"))
    if not isinstance(said.get("log", False), bool):
        problems.append((("log",), f"found {_shown(said['log'])}, expected true or false"))
    if problems:
        return None
    found = Range(said["low"], said["high"], said.get("step"), said.get("log", False))
    if found.low >= found.high:
        problems.append(((), f"low: {found.low} is not below high: {found.high}"))
    elif not found.whole and found.high - found.low < 1e-9 * max(abs(found.low), abs(found.high)):
        problems.append(((), f"{found.low} and {found.high} are too close for values between them"))
    if found.log and found.low <= 0:
        problems.append((("low",), f"found {found.low}; with log: true expected a number above 0"))
    if found.step is not None:
        if found.log:
            problems.append((("step",), "there are no steps with log: true; take one of them out"))
        elif found.step <= 0:
            problems.append((("step",), f"found {found.step}, expected a number above 0"))
        elif not problems and (_exact(found.high) - _exact(found.low)) % _exact(found.step):
            last = _exact(found.low) + _exact(found.step) * ((found.size or 1) - 1)
            problems.append((("step",), f"steps of {found.step} from {found.low} do not meet {found.high}, but {last}"))
    return found


def _read_choices(said: Any, problems: list[tuple[tuple[str | int, ...], str]]) -> Choices | None:
    if not isinstance(said, list | dict):
        problems.append(
            ((), f"found {_shown(said)}, expected a range {{low: 1, high: 4}}, or choices [1, 2] or {{label: value}}")
        )
        return None
    if not said:
        problems.append(((), "found no choices, expected one at least"))
    values = tuple(said.values()) if isinstance(said, dict) else tuple(said)
    labels = tuple(str(label) for label in said) if isinstance(said, dict) else labels_of(values)
    places: list[str | int] = list(said) if isinstance(said, dict) else list(range(len(said)))
    first: dict[str, str | int] = {}
    for place, value in zip(places, values):
        if place != first.setdefault(fingerprint(value), place):
            problems.append(((place,), f"{_shown(value)} stands twice"))
    for label, times in Counter(labels).items():
        if times > 1 and not problems:  # 1 and "1"
            problems.append(((), f"{times} choices read {label}; give them labels: {{label: value}}"))
    return Choices(values, labels)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else as_yaml(value)


def _exact(number: float) -> Decimal:
    return Decimal(str(number))  # 0.1 as it is written: three times 0.1 are 0.3


def label_of(key: str, value: Any, space: Space) -> str:
    """`lr=0.0023`"""
    return f"{names_of(space)[key]}={space[key].label(value)}"


def random_trials(space: Space, trials: int, seed: int) -> list[dict[str, Any]]:
    """Key -> value of each trial, no two of them equal; fewer where there are no more. More trials have the same
    beginning.
    """
    import numpy as np

    generator, seen, drawn = np.random.default_rng(seed), set[str](), list[dict[str, Any]]()
    while len(drawn) < trials and (values := draw_new(space, generator, seen)) is not None:
        seen.add(fingerprint(values))
        drawn.append(values)
    return drawn


def draw_new(space: Space, generator: Generator, seen: set[str]) -> dict[str, Any] | None:
    """Values of all keys whose fingerprint is not among those seen; None where all are."""
    if is_exhausted(space, seen):
        return None
    for _ in range(REDRAWS):
        # One plain number a key, in an order of its own: the same trials however numpy makes its other distributions,
        # and however the file is sorted.
        values = {key: space[key].at(generator.random()) for key in sorted(space)}
        if fingerprint(values) not in seen:
            return values
    return None


def is_exhausted(space: Space, seen: set[str]) -> bool:
    """Whether every combination of values is among those seen."""
    sizes = [part.size for part in space.values()]
    return None not in sizes and len(seen) >= math.prod(size for size in sizes if size is not None)
