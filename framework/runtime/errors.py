"""Errors that a user can fix, made in one way, and the exit codes of a command.

    UserError                    exit code 2; code, place, what was found, what was expected, what to do
    +-- RecipeError              framework/recipe/source.py
    +-- PluginError              framework/registry/source.py
    +-- ExamError                framework/exam.py
    +-- CheckpointError, ...     beside what raises them
    Stopped                      exit code 75
    ProcessLost                  exit code 76
    MainProcessFailed            exit code 2; the main process prints the reason

Every code is in `framework/runtime/codes.py`, from which docs/troubleshooting.md is generated.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from framework.runtime.codes import CODES

USER_ERROR = 2  # a mistake that the user can fix
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, everything is saved, resume later
LOST = 76  # another process died, hung or could not be reached; resume from the last checkpoint
INTERRUPTED = 130  # Ctrl-C in a command that has nothing to save: 128 + SIGINT, as a shell reports it
BUG = 1  # Python's own exit code for an unexpected exception
# Environment variable that names a file for exit code and reason, which launchers do not pass on.
OUTCOME = "SONOSCRIBE_OUTCOME"

MAX_LINES = 100  # problems in the text of one error

E = TypeVar("E", bound="UserError")


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        code: a key of `CODES`.
        found: what is wrong, in one clause.
        place: file:line:column, a recipe key, an exam, or a path.
        expected: what would be right.
        hint: the nearest match, or what to do; a sentence.
    """

    code: str
    found: str
    place: str = ""
    expected: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, f"framework/runtime/codes.py has no code '{self.code}'"
        for name in ("found", "place", "expected", "hint"):  # a lone surrogate could not be printed
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def message(self) -> str:
        """The text without the code."""
        text = f"{self.place}: {self.found}" if self.place else self.found
        if self.expected:
            text += f", expected {self.expected}"
        if self.hint:
            text += f"{'' if text.endswith(('.', '?', '!', ':')) else '.'} {self.hint}"
        return text

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def at(self, place: str) -> Problem:
        """The same problem as part of another place: `plugin.py:3` in `r.yaml:6:13: model.encoder`."""
        return replace(self, place=place, found=f"{self.place}: {self.found}" if self.place else self.found)


class UserError(ValueError):
    """A mistake that the user can fix, or several of them, one line each.

    Example:
        raise CheckpointError("no-checkpoint", "no checkpoint in this folder", place=str(folder), hint="...")
    """

    problems: tuple[Problem, ...]

    def __init__(self, code: str, found: str, *, place: Any = "", expected: str = "", hint: str = "") -> None:
        self._hold((Problem(code, found, str(place), expected, hint),))

    @classmethod
    def of(cls: type[E], problems: Iterable[Problem]) -> E:
        """One error of all `problems`, in their order, each once."""
        error = cls.__new__(cls)
        error._hold(tuple(dict.fromkeys(problems)))
        return error

    def _hold(self, problems: tuple[Problem, ...]) -> None:
        assert problems, "an error names a problem"
        lines = [*map(str, problems[:MAX_LINES])]
        if len(problems) > MAX_LINES:
            lines.append(f"... and {len(problems) - MAX_LINES} more")
        ValueError.__init__(self, "\n".join(lines))
        self.problems = problems

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return type(self).of, (self.problems,)  # crosses process boundaries

    @property
    def code(self) -> str:
        """The code of the first problem."""
        return self.problems[0].code

    @property
    def place(self) -> str:
        """The place of the first problem."""
        return self.problems[0].place


class Stopped(Exception):  # noqa: N818 - not an error
    """A run that stops on request, with everything saved."""


class ProcessLost(Exception):  # noqa: N818 - not a mistake
    """Another process died, hung, or could not be reached."""


class MainProcessFailed(Exception):  # noqa: N818 - not a mistake
    """Raised on the other processes when the main process fails; the main process prints the reason."""


def write_outcome(code: int, reason: object) -> None:
    """Writes exit code and reason to the file that the environment names. The first process to write wins: what the
    others report is a consequence of it.
    """
    path = os.environ.get(OUTCOME)
    if path:
        with contextlib.suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            json.dump({"code": code, "reason": str(reason)}, file, ensure_ascii=False)


def read_outcome(path: Path) -> int | None:
    """The exit code that `write_outcome` stored; None if every process was killed before it could."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["code"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def printable(text: str) -> str:
    """The text with unpaired surrogates, as in file names that are not UTF-8, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
