"""The combinations that a grid file states: what is multiplied, zipped, ablated, excluded and included."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from framework.grid.cells import Change, Option, changes_of
from framework.grid.file import BASELINE, LABEL, ReadGrid
from framework.grid.labels import labels_of, names_of
from framework.recipe import Recipe, RecipeError
from framework.recipe.source import Key, dotted
from framework.registry import did_you_mean, short

ABLATE = "ablate"  # the axis of `ablate`
INCLUDE = "include"  # the axis of rows that stand beside the combinations
MOST_CELLS = 10_000

Combination = tuple[str, Sequence[Option]]  # label of the row, and what it changes


@dataclass(frozen=True)
class Stated:
    """What a grid file states, before any recipe is made of it."""

    combinations: list[Combination]
    axes: dict[str, tuple[str, ...]]  # axis -> labels, in the order of the file
    baseline: str | None  # label of the row that the others are compared with


def read_axes(read: ReadGrid) -> Stated:
    """The combinations of a grid file.

    Raises:
        RecipeError: it names axes or values that it does not have, or leaves no combination.
    """
    names = _axis_names(read)
    problems: list[str] = []
    dimensions = list(_dimensions(read, names, problems))
    if problems:
        raise RecipeError(*problems)
    count = math.prod(len(options) for options in dimensions) * max(1, len(read.said.seeds))
    if count > MOST_CELLS:
        raise RecipeError(
            f"{short(read.path)}: {count:,} cells, expected at most {MOST_CELLS:,}; take values out, or use search"
        )
    combinations: list[Combination] = [
        (_row_label(options, read), options) for options in itertools.product(*dimensions)
    ]
    axes = {
        axis: tuple(dict.fromkeys(option.labels[axis] for option in options))
        for options in dimensions
        for axis in options[0].labels
    }
    combinations = _without_excluded(read, names, combinations, axes)
    combinations += _included(read, names, dimensions)
    _labels_stand_once(read, combinations)
    return Stated(combinations, axes, _baseline(read, names, combinations, axes))


def _axis_names(read: ReadGrid) -> dict[str, str]:
    """What each axis is called, by what it is written as."""
    names = names_of([*read.said.axes, *read.said.zip])
    return {**names, ABLATE: ABLATE} if read.said.ablate else names


def _dimensions(read: ReadGrid, names: dict[str, str], problems: list[str]) -> Iterator[list[Option]]:
    """What is combined with what: each axis; what is zipped, as one; what is ablated, as one."""
    said = read.said
    for both in said.axes.keys() & said.zip.keys():
        problems.append(f"{read.where(('zip', both))}: zip.{both}: stands in axes as well; it can be in one alone")
    for key, values in said.axes.items():
        if options := _options(read, ("axes", key), names[key], values, problems):
            yield options
    zipped = [_options(read, ("zip", key), names[key], values, problems) for key, values in said.zip.items()]
    if all(zipped) and len({len(options) for options in zipped}) > 1:
        lengths = ", ".join(f"{len(options)} of {key}" for key, options in zip(said.zip, zipped))
        problems.append(f"{read.where(('zip',))}: zip: found {lengths}; expected as many values of each")
    elif zipped:
        yield [_joined(options) for options in zip(*zipped)]
    if said.ablate:
        alone = frozenset({ABLATE})
        whole = Option({ABLATE: BASELINE}, (), named=alone)
        if BASELINE in said.ablate:
            problems.append(
                f"{read.where((ABLATE, BASELINE))}: ablate.{BASELINE}: that is the recipe as it is; take it out"
            )
        changed = [
            Option({ABLATE: label}, tuple(changes_of(values, (ABLATE, label))), named=alone)
            for label, values in said.ablate.items()
        ]
        yield [whole, *changed]


def _joined(options: Sequence[Option]) -> Option:
    labels = {axis: label for option in options for axis, label in option.labels.items()}
    values = {axis: value for option in options for axis, value in option.values.items()}
    named = frozenset(axis for option in options for axis in option.named)
    return Option(labels, tuple(change for option in options for change in option.changes), values, named)


def _options(read: ReadGrid, at: Key, axis: str, values: Any, problems: list[str]) -> list[Option]:
    """The values of one axis, under their labels."""
    key = str(at[-1])
    where = f"{read.where(at)}: {dotted(at)}"
    if not values:
        problems.append(f"{where}: found no values, expected a list of them, or labels and values")
        return []
    if key.split(".")[0] not in Recipe.model_fields:  # an axis under a name of its own
        if not (isinstance(values, dict) and all(isinstance(value, dict) for value in values.values())):
            guess = did_you_mean(key, Recipe.model_fields)
            problems.append(
                f"{where}: no key of a recipe.{guess} Under a name of its own, an axis has labels, and what keys each "
                "sets: {label: {distiller.topics: 5, ...}}"
            )
            return []
        return [
            Option({axis: label}, tuple(changes_of(value, (*at, label))), named=frozenset({axis}))
            for label, value in values.items()
        ]
    if isinstance(values, dict):
        labels, parts, named = tuple(values), list(values), frozenset({axis})
    else:
        labels, parts, named = labels_of(values), list(range(len(values))), frozenset()
    for label, times in Counter(labels).items():
        if times > 1:
            problems.append(f"{where}: {label} stands {times} times")
    return [
        Option({axis: label}, (Change(key, value, (*at, part)),), {axis: value}, named)
        for label, part, value in zip(labels, parts, values.values() if isinstance(values, dict) else values)
    ]


def _row_label(options: Sequence[Option], read: ReadGrid) -> str:
    """`distiller=lda, weight=0.3`; labels that the author has chosen stand alone."""
    parts = [
        name if axis in option.named else f"{axis}={name}" for option in options for axis, name in option.labels.items()
    ]
    return ", ".join(parts) or read.recipe.stem


def _without_excluded(
    read: ReadGrid, names: dict[str, str], combinations: list[Combination], axes: dict[str, tuple[str, ...]]
) -> list[Combination]:
    problems: list[str] = []
    for index, excluded in enumerate(read.said.exclude):
        at: Key = ("exclude", index)
        wanted = _by_axis(read, names, axes, excluded, at, problems)
        kept = [one for one in combinations if not _stands_at(one[1], wanted)]
        if wanted and len(kept) == len(combinations) and not problems:
            problems.append(f"{read.where(at)}: {dotted(at)}: no combination is like that; take it out, or mend it")
        combinations = kept
    if problems:
        raise RecipeError(*problems)
    return combinations


def _stands_at(options: Sequence[Option], wanted: dict[str, Any]) -> bool:
    return bool(wanted) and all(any(option.has(axis, value) for option in options) for axis, value in wanted.items())


def _by_axis(
    read: ReadGrid,
    names: dict[str, str],
    axes: dict[str, tuple[str, ...]],
    said: dict[str, Any],
    at: Key,
    problems: list[str],
) -> dict[str, Any]:
    """{axis as it is called: label or value}. An axis may be named by its whole key."""
    found = {}
    for key, value in said.items():
        axis = names.get(key, key)
        if axis not in axes:
            guess = did_you_mean(key, [*axes, *names])
            problems.append(
                f"{read.where((*at, key))}: {dotted((*at, key))}: no axis of this grid.{guess} "
                f"Its axes: {', '.join(axes) or 'none'}"
            )
            continue
        found[axis] = value
    return found


def _included(read: ReadGrid, names: dict[str, str], dimensions: Sequence[Sequence[Option]]) -> list[Combination]:
    combinations: list[Combination] = []
    problems: list[str] = []
    for index, values in enumerate(read.said.include):
        at: Key = ("include", index)
        label = values.get(LABEL)
        if not isinstance(label, str) or not label.strip():
            problems.append(f"{read.where(at)}: {dotted(at)}: needs {LABEL}: a text that its row is called by")
            continue
        changes = [change for change in changes_of(values, at) if change.key != LABEL]
        labels = {
            axis: option.labels[axis]
            for change in changes
            for options in dimensions
            for option in options
            for axis in option.labels
            if axis == names.get(change.key) and option.has(axis, change.value)
        }
        combinations.append((label, [Option({**labels, INCLUDE: label}, tuple(changes))]))
    if problems:
        raise RecipeError(*problems)
    return combinations


def _labels_stand_once(read: ReadGrid, combinations: Sequence[Combination]) -> None:
    twice = [label for label, times in Counter(label for label, _ in combinations).items() if times > 1]
    if twice:
        raise RecipeError(f"{short(read.path)}: two rows are called {', '.join(map(repr, twice))}; give them labels")
    if not combinations:
        raise RecipeError(f"{short(read.path)}: every combination is excluded, so no cell is left")


def _baseline(
    read: ReadGrid, names: dict[str, str], combinations: Sequence[Combination], axes: dict[str, tuple[str, ...]]
) -> str | None:
    """The label of the row that others are compared with."""
    said, labels, at = read.said.report.baseline, [label for label, _ in combinations], ("report", "baseline")
    where = f"{read.where(at)}: report.baseline"
    if said is None:
        return labels[0] if len(labels) > 1 else None
    if isinstance(said, str):
        if said not in labels:
            raise RecipeError(
                f"{where}: no row is called {said!r}.{did_you_mean(said, labels)} Rows: {'; '.join(labels)}"
            )
        return said
    problems: list[str] = []
    wanted = _by_axis(read, names, axes, said, at, problems)
    found = [label for label, options in combinations if _stands_at(options, wanted)]
    if not problems and len(found) != 1:
        told = "; ".join(found) if found else "none"
        problems.append(f"{where}: expected one row that is like that, found {told}. Rows: {'; '.join(labels)}")
    if problems:
        raise RecipeError(*problems)
    return found[0]
