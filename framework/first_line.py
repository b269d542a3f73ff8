"""What an error says first: messages are one line, and the rest of a library's is for its authors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
