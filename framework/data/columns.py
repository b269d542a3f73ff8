"""The columns of a table that a recipe names, and the shares that make splits where it names no column of splits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from framework.registry import did_you_mean
from framework.runtime.errors import Problem, UserError

REQUIRED = ("image", "report")


def named_columns(
    columns: Mapping[str, str | list[str]], place: str
) -> tuple[list[str], dict[str, str], list[Problem]]:
    """The columns of images, the other columns by their key, and what is wrong with them.

    Args:
        place: the key of the recipe that has `columns` and `shares`.
    """
    names = {key: [name] if isinstance(name, str) else name for key, name in columns.items()}
    problems = [
        Problem("missing-key", "is missing", f"{place}.columns.{key}", "the name of a column")
        for key in REQUIRED
        if not names.get(key)
    ]
    images = names.pop("image", [])
    problems += [
        Problem("wrong-type", f"found {len(name)} columns", f"{place}.columns.{key}", "one column")
        for key, name in names.items()
        if len(name) > 1
    ]
    return images, {key: name[0] for key, name in names.items() if len(name) == 1}, problems


def shares_problems(shares: Mapping[str, float] | None, place: str) -> list[Problem]:
    """What is wrong with the shares of train, val and test. `place`: see `named_columns`."""
    if shares is None or (math.isclose(sum(shares.values()), 1, abs_tol=1e-6) and min(shares.values()) > 0):
        return []
    found = f"the shares are {', '.join(f'{name} {share:g}' for name, share in shares.items())}"
    return [Problem("out-of-range", found, f"{place}.shares", "train, val and test above 0, of sum 1")]


def require_columns(
    images: Sequence[str], others: Mapping[str, str], known: Sequence[str], table: str, place: str
) -> None:
    """Raises UserError, with the nearest match, if a table lacks columns that the recipe names.

    Args:
        table: what lacks them, for the message.
        place: see `named_columns`.
    """
    listed = ", ".join(filter(None, known))
    named = [*(("image", name) for name in images), *others.items()]
    problems = [
        Problem(
            "unknown-name", f"{table} has no column '{name}'", f"{place}.columns.{key}",
            hint=f"{did_you_mean(name, known)} Columns: {listed}".strip(),
        )
        for key, name in named
        if name not in known
    ]  # fmt: skip
    if problems:
        raise UserError.of(problems)


def split_leaks(exams: Iterable[tuple[str, str, str]]) -> list[UserError]:
    """An error for each exam whose patient is in another split before.

    Args:
        exams: patient, split and place of each.
    """
    first: dict[str, tuple[str, str]] = {}
    errors = []
    for patient, split, place in exams:
        other, where = first.setdefault(patient, (split, place))
        if other != split:
            found = f"patient {patient} is in {split}, and in {other} in {where}"
            errors.append(UserError("split-leak", found, place=place))
    return errors
