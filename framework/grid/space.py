"""The search space: ranges and choices of recipe keys, validated, and random draws from them."""

from __future__ import annotations

import math
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from framework.grid.cells import fingerprint, short_names, value_labels
from framework.recipe.check import explain
from framework.recipe.describe import as_yaml
from framework.recipe.schema import Section
from framework.recipe.source import Found, Key
from framework.runtime.errors import Problem

if TYPE_CHECKING:
    from numpy.random import Generator

# A mapping with these keys alone was meant as a range: {min: 1, max: 4}. {slow: 1, fast: 4} are labelled choices.
RANGE_SYNONYMS = {*"lo hi min max minimum maximum lower upper from to start stop end".split()}  # noqa: SIM905
DECIMALS = 3  # of draws, relative to the width of their range: 1,000 values or more
MAX_REDRAWS = 100_000  # consecutive draws without a new value, after which the space counts as exhausted


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


class RangeKeys(Section):
    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False


RANGE_KEYS = list(RangeKeys.model_fields)


def read_space(keys: dict[str, Any]) -> tuple[Space, list[Found]]:
    """Parses `search.keys`. Returns the keys without problems, and the problems with their place inside the keys."""
    found: list[Found] = []
    if not keys:
        expected = "at least one: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}"
        found.append(((), Problem("missing-key", "found no keys", expected=expected)))
    space: Space = {}
    for key, spec in keys.items():
        problems: list[Found] = []
        part = (_read_range if _is_range(spec) else _read_choices)(spec, problems)
        found += [((key, *at), problem) for at, problem in problems]
        if part is not None and not problems:
            space[key] = part
    return space, found


def _is_range(spec: Any) -> bool:
    if not isinstance(spec, dict) or not spec:
        return False
    return any(key in RANGE_KEYS for key in spec) or spec.keys() <= RANGE_SYNONYMS


def _read_range(spec: dict[str, Any], problems: list[Found]) -> Range | None:
    try:
        found = Range(**RangeKeys.model_validate(spec, strict=True).model_dump())
    except ValidationError as error:
        problems += explain(error, spec, (), lambda _: RANGE_KEYS)
        return None

    def note(code: str, key: str, text: str, expected: str = "") -> None:
        problems.append(((key,) if key else (), Problem(code, text, expected=expected)))

    if found.low >= found.high:
        note("out-of-range", "", f"low: {found.low} is not below high: {found.high}")
    elif not found.is_integer and found.high - found.low < 1e-9 * max(abs(found.low), abs(found.high)):
        note("out-of-range", "", f"{found.low} and {found.high} are too close to have values between them")
    if found.log and found.low <= 0:
        note("out-of-range", "low", f"found {found.low}", "a number above 0 with log: true")
    if found.step is not None:
        if found.log:
            note("conflicting-settings", "step", "a range with log: true has no steps")
        elif found.step <= 0:
            note("out-of-range", "step", f"found {found.step}", "a number above 0")
        elif not problems and (_exact(found.high) - _exact(found.low)) % _exact(found.step):
            last = _exact(found.low) + _exact(found.step) * ((found.size or 1) - 1)
            note("does-not-divide", "step", f"steps of {found.step} from {found.low} end at {last}, not {found.high}")
    return found


def _read_choices(spec: Any, problems: list[Found]) -> Choices | None:
    def note(code: str, at: Key, text: str, expected: str = "") -> None:
        problems.append((at, Problem(code, text, expected=expected)))

    if not isinstance(spec, list | dict):
        expected = "a range {low: 1, high: 4}, or choices [1, 2] or {label: value}"
        note("wrong-type", (), f"found {_shown(spec)}", expected)
        return None
    if not spec:
        note("missing-key", (), "found no choices", "at least one")
    values = tuple(spec.values()) if isinstance(spec, dict) else tuple(spec)
    labels = tuple(str(label) for label in spec) if isinstance(spec, dict) else value_labels(values)
    first: dict[str, str | int] = {}
    for place, value in zip(spec if isinstance(spec, dict) else range(len(spec)), values):
        if place != first.setdefault(fingerprint(value), place):
            note("duplicate-name", (place,), f"{_shown(value)} is listed twice")
    for label, times in Counter(labels).items():
        if times > 1 and not problems:  # 1 and "1"
            note("duplicate-name", (), f"{times} choices have the label {label}", "{label: value}")
    return Choices(values, labels)


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
