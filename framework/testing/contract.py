"""How a check reports a broken contract: the rule, what was found, what was expected, and the fix."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

Make = Callable[..., Any]


class ContractError(AssertionError):
    """A plugin breaks the contract of its kind."""

    def __init__(self, rule: str, found: object, expected: object, fix: str) -> None:
        super().__init__(f"contract broken: {rule}\n  found: {found}\n  expected: {expected}\n  fix: {fix}")
        self.rule = rule


def require(ok: Any, rule: str, *, found: object, expected: object, fix: str) -> None:
    """Raises `ContractError` unless `ok`."""
    if not ok:
        raise ContractError(rule, found, expected, fix)


@contextmanager
def runs(rule: str, *, expected: str, fix: str) -> Iterator[None]:
    """Turns an exception of the plugin into a `ContractError` with the exception as its cause."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise ContractError(rule, f"{type(error).__name__}: {text}", expected, fix) from error


def build_plugin(make: Make, **given: Any) -> Any:
    """The plugin, built with those run-time values that `make` names, as a recipe would build it."""
    arguments = inspect.signature(make).parameters.values()
    # A plugin's keys are named arguments; the ** of a class is that of nn.Module, which takes none.
    is_class = isinstance(make.func if isinstance(make, partial) else make, type)
    takes_all = not is_class and any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
    names = {argument.name for argument in arguments}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [
        argument.name
        for argument in arguments
        if argument.kind in named and argument.default is inspect.Parameter.empty and argument.name not in given
    ]
    require(
        not missing,
        "the test gives every required key a value",
        found=f"no value for {', '.join(missing)}",
        expected="a value for each",
        fix=f"in the test: check(KIND, functools.partial(plugin(...), {', '.join(f'{name}=...' for name in missing)}))",
    )
    return make(**{name: value for name, value in given.items() if takes_all or name in names})
