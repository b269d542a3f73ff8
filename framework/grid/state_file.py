"""Reads the files in which a grid keeps its state. Someone may have edited them, so each is checked by a schema."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded

T = TypeVar("T")
adapter = cache(TypeAdapter)


def read_state(schema: type[T], path: Path, hint: str = "Delete the file.") -> T:
    """The JSON object in a file.

    Args:
        schema: a dataclass, or another type that pydantic knows. Keys that it does not have are ignored.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: `damaged-file` or `unreadable-file`, with the path.
    """
    return parse_state(schema, read_bounded(path), path, hint)


def parse_state(schema: type[T], content: str | bytes, place: str | Path, hint: str) -> T:
    """Like `read_state`, from the content of a file or of a line."""
    try:
        found: T = adapter(schema).validate_json(content, strict=True)  # type: ignore[arg-type] # a type is hashable
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        found_at = ".".join(map(str, first["loc"]))
        text = f"{found_at}: {first['msg']}" if found_at else first["msg"]
        raise UserError("damaged-file", text, place=place, hint=hint) from None
    return found
