"""The search space: ranges and choices of recipe keys, validated, and random draws from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from framework.grid.cells import fingerprint, short_names, value_labels
from framework.recipe.describe import as_yaml
from framework.registry import did_you_mean

if TYPE_CHECKING:
    from numpy.random import Generator

RANGE_KEYS = ("low", "high", "step", "log")
# A mapping with these keys alone was meant as a range: {min: 1, max: 4}. {slow: 1, fast: 4} are labelled choices.
RANGE_SYNONYMS = {
    "lo",
    "hi",
    "min",
    "max",
    "minimum",
    "maximum",
    "lower",
    "upper",
    "from",
    "to",
    "start",
    "stop",
    "end",
}
DECIMALS = 3  # of draws, relative to the width of their range: 1,000 values or more
MAX_REDRAWS = 100_000  # consecutive draws without a new value, after which the space counts as exhausted
Note = Callable[..., None]  # code, place inside the keys, found, expected, hint


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; integers if low, high and step are integers."""

    low: float
    high: float
    step: float | None = None
    log: bool = False  # uniform in the logarithm

    @property
    def is_integer(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)

    @property
    def size(self) -> int | None:
        """Number of values; None: not countable."""
        step = self.step or (1 if self.is_integer else None)
        return None if step is None else int((_exact(self.high) - _exact(self.low)) / _exact(step)) + 1

    def at(self, fraction: float) -> Any:
        """The value at a fraction of the range, from low (0) to high (1)."""
        if self.log:
            half = 0.5 if self.is_integer else 0.0  # gives the end points the same probability as their neighbours
            low, high = math.log(self.low - half), math.log(self.high + half)
            return self.round(math.exp(low + fraction * (high - low)))
        if self.size is not None:
            return self.round(self.low + min(int(fraction * self.size), self.size - 1) * (self.step or 1))
        return self.round(self.low + fraction * (self.high - self.low))

    def round(self, value: float) -> Any:
        """The nearest value that can be drawn. It has few digits, so that its label is exact."""
        if self.size is not None:
            step = _exact(self.step or 1)
            near = _exact(self.low) + step * round((_exact(value) - _exact(self.low)) / step)
            return int(near) if self.is_integer else float(near)
        places = DECIMALS - math.floor(math.log10(self.high - self.low))
        if self.log:
            places = max(places, DECIMALS - 1 - math.floor(math.log10(value)))
        return float(min(max(round(value, places), self.low), self.high))

    def label(self, value: Any) -> str:
        return str(value) if self.is_integer else f"{value:.12g}"


@dataclass(frozen=True)
class Choices:
    """One of several values of any type."""

    values: tuple[Any, ...]
    labels: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, fraction: float) -> Any:
        return deepcopy(self.values[min(int(fraction * self.size), self.size - 1)])

    def label(self, value: Any) -> str:
        return self.labels[[fingerprint(choice) for choice in self.values].index(fingerprint(value))]

    def value(self, label: str) -> Any:
        return deepcopy(self.values[self.labels.index(label)])


Space = dict[str, Range | Choices]  # by dotted recipe key


def read_space(keys: dict[str, Any], note: Note) -> Space:
    """Parses `search.keys`.

    Args:
        note: called with each problem. A key with a problem is left out of the result.
    """
    if not keys:
        note("missing-key", (), "found no keys", "at least one: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}")
    space: Space = {}
    for key, spec in keys.items():
        problems: list[tuple[Any, ...]] = []

        def note_inside(
            code: str, at: tuple[str | int, ...], *texts: str, key: str = key, problems: list[Any] = problems
        ) -> None:
            problems.append((code, (key, *at), *texts))

        part = (_read_range if _is_range(spec) else _read_choices)(spec, note_inside)
        for problem in problems:
            note(*problem)
        if part is not None and not problems:
            space[key] = part
    return space


def _is_range(spec: Any) -> bool:
    return (
        isinstance(spec, dict) and bool(spec) and (any(k in RANGE_KEYS for k in spec) or spec.keys() <= RANGE_SYNONYMS)
    )


def _read_range(spec: dict[Any, Any], note: Note) -> Range | None:
    count = 0  # of problems that make the range unreadable

    def refuse(*problem: Any) -> None:
        nonlocal count
        count += 1
        note(*problem)

    for key in spec:
        if key not in RANGE_KEYS:
            hint = f"{did_you_mean(str(key), RANGE_KEYS)} Known: {', '.join(RANGE_KEYS)}".strip()
            refuse("unknown-key", (key,), "unknown key of a range", "", hint)
    for key in ("low", "high"):
        if key not in spec:
            refuse("missing-key", (), f"the range has no {key}", "{low: 1e-4, high: 1e-2}")
    for key in ("low", "high", "step"):
        if key in spec and not (key == "step" and spec[key] is None) and not _is_number(spec[key]):
            refuse("wrong-type", (key,), f"found {_shown(spec[key])}", "a number")
    if not isinstance(spec.get("log", False), bool):
        refuse("wrong-type", ("log",), f"found {_shown(spec['log'])}", "true or false")
    if count:
        return None
    found = Range(spec["low"], spec["high"], spec.get("step"), spec.get("log", False))
    if found.low >= found.high:
        refuse("out-of-range", (), f"low: {found.low} is not below high: {found.high}")
    elif not found.is_integer and found.high - found.low < 1e-9 * max(abs(found.low), abs(found.high)):
        refuse("out-of-range", (), f"{found.low} and {found.high} are too close to have values between them")
    if found.log and found.low <= 0:
        refuse("out-of-range", ("low",), f"found {found.low}", "a number above 0 with log: true")
    if found.step is not None:
        if found.log:
            refuse("conflicting-settings", ("step",), "log: true has no steps", "", "Remove one of the two.")
        elif found.step <= 0:
            refuse("out-of-range", ("step",), f"found {found.step}", "a number above 0")
        elif not count and (_exact(found.high) - _exact(found.low)) % _exact(found.step):
            last = _exact(found.low) + _exact(found.step) * ((found.size or 1) - 1)
            steps = f"steps of {found.step} from {found.low} end at {last}, not at {found.high}"
            refuse("does-not-divide", ("step",), steps)
    return found


def _read_choices(spec: Any, note: Note) -> Choices | None:
    if not isinstance(spec, list | dict):
        expected = "a range {low: 1, high: 4}, or choices [1, 2] or {label: value}"
        note("wrong-type", (), f"found {_shown(spec)}", expected)
        return None
    if not spec:
        note("missing-key", (), "found no choices", "at least one")
    values = tuple(spec.values()) if isinstance(spec, dict) else tuple(spec)
    labels = tuple(str(label) for label in spec) if isinstance(spec, dict) else value_labels(values)
    places: list[str | int] = list(spec) if isinstance(spec, dict) else list(range(len(spec)))
    first: dict[str, str | int] = {}
    has_duplicates = False
    for place, value in zip(places, values):
        if place != first.setdefault(fingerprint(value), place):
            has_duplicates = True
            note("duplicate-name", (place,), f"{_shown(value)} is listed twice")
    for label, times in Counter(labels).items():
        if times > 1 and not has_duplicates:  # 1 and "1"
            note("duplicate-name", (), f"{times} choices have the label {label}", "", "Write {label: value}.")
    return Choices(values, labels)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else as_yaml(value)


def _exact(number: float) -> Decimal:
    return Decimal(str(number))  # 0.1 as it is written: three times 0.1 is 0.3


def label_of(key: str, value: Any, space: Space) -> str:
    """`lr=0.0023`"""
    return f"{short_names(space)[key]}={space[key].label(value)}"


def random_trials(space: Space, trials: int, seed: int) -> list[dict[str, Any]]:
    """Draws up to `trials` different trials, each a mapping from key to value. Fewer if the space has no more; a larger
    number continues the same sequence.
    """
    import numpy as np

    generator, seen, drawn = np.random.default_rng(seed), set[str](), list[dict[str, Any]]()
    while len(drawn) < trials and (values := draw_new(space, generator, seen)) is not None:
        seen.add(fingerprint(values))
        drawn.append(values)
    return drawn


def draw_new(space: Space, generator: Generator, seen: set[str]) -> dict[str, Any] | None:
    """Draws values whose fingerprint is not in `seen`; None if there are none left."""
    if is_exhausted(space, seen):
        return None
    for _ in range(MAX_REDRAWS):
        # One uniform number per sorted key: the trials do not depend on numpy's other distributions, nor on the order
        # of the keys in the file.
        values = {key: space[key].at(generator.random()) for key in sorted(space)}
        if fingerprint(values) not in seen:
            return values
    return None


def is_exhausted(space: Space, seen: set[str]) -> bool:
    """Whether `seen` has every combination of values."""
    sizes = [part.size for part in space.values()]
    return None not in sizes and len(seen) >= math.prod(size for size in sizes if size is not None)
