"""The combinations of a grid file: `axes`, `zip`, `ablate`, `exclude`, `include` and `report.baseline`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from framework.grid.cells import Change, Combination, Option, changes_of, short_names, value_labels
from framework.grid.file import BASELINE, LABEL, ParsedGrid
from framework.recipe import Recipe
from framework.recipe.source import Key
from framework.registry import did_you_mean, short
from framework.runtime.errors import Problem, UserError

ABLATE = "ablate"  # name of the axis of `ablate`
INCLUDE = "include"  # name of the axis of included rows
MAX_CELLS = 10_000


@dataclass(frozen=True)
class Axes:
    """The rows of a grid, before a recipe is made of each."""

    combinations: list[Combination]
    labels: dict[str, tuple[str, ...]]  # axis -> labels, in the order of the file
    baseline: str | None  # label of the row that the others are compared with


def read_axes(grid: ParsedGrid) -> Axes:
    """Returns the combinations of a grid file.

    Raises:
        UserError: it names an unknown axis or value, or leaves no combination.
    """
    return _AxesReader(grid).read()


class _AxesReader:
    def __init__(self, grid: ParsedGrid) -> None:
        self.grid, self.spec = grid, grid.spec
        self.problems: list[Problem] = []
        names = short_names([*grid.spec.axes, *grid.spec.zip])
        self.names = {**names, ABLATE: ABLATE} if grid.spec.ablate else names  # key in the file -> name of the axis
        self.labels: dict[str, tuple[str, ...]] = {}

    def read(self) -> Axes:
        file = short(self.grid.path)
        dimensions = list(self._dimensions())
        self._raise_problems()
        count = math.prod(len(options) for options in dimensions) * max(1, len(self.spec.seeds))
        if count > MAX_CELLS:
            hint = "Remove values, or use search."
            raise UserError(
                "out-of-range", f"{count:,} cells", place=file, expected=f"at most {MAX_CELLS:,}", hint=hint
            )
        combinations: list[Combination] = [
            (self._row_label(options), options) for options in itertools.product(*dimensions)
        ]
        self.labels = {
            axis: tuple(dict.fromkeys(option.labels[axis] for option in options))
            for options in dimensions
            for axis in options[0].labels
        }
        combinations = self._without_excluded(combinations) + self._included(dimensions)
        self._raise_problems()
        for label, times in Counter(label for label, _ in combinations).items():
            if times > 1:
                raise UserError("duplicate-name", f"two rows have the label {label!r}", place=file, hint="Add labels.")
        if not combinations:
            raise UserError("conflicting-settings", "every combination is excluded, so no cell is left", place=file)
        return Axes(combinations, self.labels, self._baseline(combinations))

    def _note(self, code: str, key: Key, found: str, expected: str = "", hint: str = "") -> None:
        self.problems.append(Problem(code, found, self.grid.place(key), expected, hint.strip()))

    def _raise_problems(self) -> None:
        if self.problems:
            raise UserError.of(self.problems)

    def _dimensions(self) -> Iterator[list[Option]]:
        """The lists of options that are multiplied: one per axis, one for `zip`, one for `ablate`."""
        spec = self.spec
        for both in spec.axes.keys() & spec.zip.keys():
            self._note("conflicting-settings", ("zip", both), "the key is also in axes", hint="Remove one of the two.")
        for key, values in spec.axes.items():
            if options := self._options(("axes", key), values):
                yield options
        zipped = [self._options(("zip", key), values) for key, values in spec.zip.items()]
        if all(zipped) and len({len(options) for options in zipped}) > 1:
            lengths = ", ".join(f"{len(options)} of {key}" for key, options in zip(spec.zip, zipped))
            self._note("does-not-fit", ("zip",), f"found {lengths}", "the same number of values for each")
        elif zipped:
            yield [_join(options) for options in zip(*zipped)]
        if spec.ablate:
            named = frozenset({ABLATE})
            if BASELINE in spec.ablate:
                found = "the label is that of the unchanged recipe"
                self._note("duplicate-name", (ABLATE, BASELINE), found, hint="Remove it or choose another label.")
            yield [
                Option({ABLATE: BASELINE}, (), named=named),
                *(
                    Option({ABLATE: label}, tuple(changes_of(values, (ABLATE, label))), named=named)
                    for label, values in spec.ablate.items()
                ),
            ]

    def _options(self, at: Key, values: Any) -> list[Option]:
        """The labelled values of one axis."""
        key = str(at[-1])
        axis = self.names[key]
        if not values:
            self._note("missing-key", at, "found no values", "a list of them, or labels and values")
            return []
        if key.split(".")[0] not in Recipe.model_fields:  # an axis that sets several keys
            if not (isinstance(values, dict) and all(isinstance(value, dict) for value in values.values())):
                hint = "An axis that is not a key has labels and the keys that each sets: {label: {train.epochs: 5}}"
                found = f"the recipe has no key {key!r}"
                self._note(
                    "unknown-key", at, found, hint=f"{did_you_mean(key, Recipe.model_fields).strip()} {hint}".strip()
                )
                return []
            return [
                Option({axis: label}, tuple(changes_of(value, (*at, label))), named=frozenset({axis}))
                for label, value in values.items()
            ]
        if isinstance(values, dict):
            labels, parts, named = tuple(values), list(values), frozenset({axis})
        else:
            labels, parts, named = value_labels(values), list(range(len(values))), frozenset()
        for label, times in Counter(labels).items():
            if times > 1:
                self._note("duplicate-name", at, f"the value {label} is listed {times} times")
        return [
            Option({axis: label}, (Change(key, value, (*at, part)),), {axis: value}, named)
            for label, part, value in zip(labels, parts, values.values() if isinstance(values, dict) else values)
        ]

    def _row_label(self, options: Sequence[Option]) -> str:
        """`distiller=lda, weight=0.3`; labels from the file are shown without their axis."""
        parts = [
            label if axis in option.named else f"{axis}={label}"
            for option in options
            for axis, label in option.labels.items()
        ]
        return ", ".join(parts) or self.grid.recipe.stem

    def _without_excluded(self, combinations: list[Combination]) -> list[Combination]:
        for index, excluded in enumerate(self.spec.exclude):
            at: Key = ("exclude", index)
            wanted = self._by_axis(excluded, at)
            kept = [combination for combination in combinations if not _matches(combination[1], wanted)]
            if wanted and len(kept) == len(combinations) and not self.problems:
                self._note("ignored-setting", at, "no combination matches", hint="Correct or remove it.")
            combinations = kept
        return combinations

    def _by_axis(self, values: dict[str, Any], at: Key) -> dict[str, Any]:
        """{name of the axis: label or value}. The file may name an axis by its whole key."""
        found = {}
        for key, value in values.items():
            axis = self.names.get(key, key)
            if axis in self.labels:
                found[axis] = value
                continue
            hint = f"{did_you_mean(key, [*self.labels, *self.names])} Its axes: {', '.join(self.labels) or 'none'}"
            self._note("unknown-name", (*at, key), f"the grid has no axis {key!r}", hint=hint)
        return found

    def _included(self, dimensions: Sequence[Sequence[Option]]) -> list[Combination]:
        combinations: list[Combination] = []
        for index, values in enumerate(self.spec.include):
            at: Key = ("include", index)
            label = values.get(LABEL)
            if not isinstance(label, str) or not label.strip():
                self._note("missing-key", at, "found no label", f"{LABEL}: the name of the row")
                continue
            changes = [change for change in changes_of(values, at) if change.key != LABEL]
            labels = {
                axis: option.labels[axis]
                for change in changes
                for options in dimensions
                for option in options
                for axis in option.labels
                if axis == self.names.get(change.key) and option.has(axis, change.value)
            }
            combinations.append((label, [Option({**labels, INCLUDE: label}, tuple(changes))]))
        return combinations

    def _baseline(self, combinations: Sequence[Combination]) -> str | None:
        """The label of the row that the others are compared with."""
        wanted, labels, at = self.spec.report.baseline, [label for label, _ in combinations], ("report", "baseline")
        if wanted is None:
            return labels[0] if len(labels) > 1 else None
        rows = f"Rows: {'; '.join(labels)}"
        if isinstance(wanted, str):
            if wanted not in labels:
                hint = f"{did_you_mean(wanted, labels)} {rows}"
                self._note("unknown-name", at, f"the grid has no row {wanted!r}", hint=hint)
            self._raise_problems()
            return wanted
        by_axis = self._by_axis(wanted, at)
        found = [label for label, options in combinations if _matches(options, by_axis)]
        if not self.problems and len(found) != 1:
            self._note("unknown-name", at, f"matches {'; '.join(found) or 'no row'}", "exactly one row", rows)
        self._raise_problems()
        return found[0]


def _join(options: Sequence[Option]) -> Option:
    """One option of several axes that go together."""
    return Option(
        {axis: label for option in options for axis, label in option.labels.items()},
        tuple(change for option in options for change in option.changes),
        {axis: value for option in options for axis, value in option.values.items()},
        frozenset(axis for option in options for axis in option.named),
    )


def _matches(options: Sequence[Option], wanted: dict[str, Any]) -> bool:
    return bool(wanted) and all(any(option.has(axis, value) for option in options) for axis, value in wanted.items())
