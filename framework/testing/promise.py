"""How a check speaks: which promise is broken, what was found, what was expected, and the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

Make = Callable[..., Any]


class BrokenPromise(AssertionError):  # noqa: N818 - it is what a test fails with
    """A plugin does not do what its kind promises."""


def hold(kept: Any, promise: str, *, found: object, expected: object, fix: str) -> None:
    """Raises `BrokenPromise` unless `kept`."""
    if not kept:
        raise BrokenPromise(f"promise broken: {promise}\n  found: {found}\n  expected: {expected}\n  fix: {fix}")


@contextmanager
def promised(promise: str, *, expected: str, fix: str) -> Iterator[None]:
    """Turns whatever a plugin raises inside into a broken promise; the plugin's own error stays attached."""
    try:
        yield
    except BrokenPromise:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        found = f"{type(error).__name__}: {text}"
        raise BrokenPromise(
            f"promise broken: {promise}\n  found: {found}\n  expected: {expected}\n  fix: {fix}"
        ) from error


def made(make: Make, **given: Any) -> Any:
    """The plugin, with those run-time values that `make` names, as a recipe would make it."""
    arguments = inspect.signature(make).parameters.values()
    # A plugin's own keys are named arguments; the ** of a class is that of nn.Module, which takes none.
    is_class = isinstance(make.func if isinstance(make, partial) else make, type)
    takes_all = not is_class and any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
    names = {argument.name for argument in arguments}
    return make(**{name: value for name, value in given.items() if takes_all or name in names})
