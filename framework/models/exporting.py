"""Whether a module is traced as a program for inputs of any size, which cannot depend on sizes as Python code does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_traced = False


@contextmanager
def exporting() -> Iterator[None]:
    """Inside, `is_exporting` is true."""
    global _traced
    _traced = True
    try:
        yield
    finally:
        _traced = False


def is_exporting() -> bool:
    """Not `torch.compiler.is_exporting`, which is also true where torch.compile traces a step of training."""
    return _traced
