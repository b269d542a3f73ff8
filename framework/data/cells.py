"""Values of a cell of a table or JSON file as the person means them who entered them in Excel, pandas or a database."""

from __future__ import annotations

import math
import re
from typing import Any

# Texts of a missing value, in any case: what pandas reads as missing, and what SQL and Excel write.
MISSING = frozenset({"", "nan", "null", "none", "na", "n/a", "#n/a", "<na>"})
WHOLE = re.compile(r"([+-]?\d+)\.0+")  # a whole number of a column in which pandas found missing values
ROUNDED = re.compile(r"[+-]?\d+([.,]\d+)?[eE]\+?\d+")  # how Excel writes a long number
EXACT = 2**53  # above, floats have gaps


def present(value: Any) -> Any:
    """A value as pandas means it: NaN and empty text are a missing value (None), and 17.0 in a column with missing
    values is 17.
    """
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if isinstance(value, str) and not value.strip() else value


def text_of(value: Any) -> str | None:
    """The text of a cell; None where the value is missing."""
    value = present(value)
    text = "" if value is None else str(value).strip()
    return None if text.casefold() in MISSING else text


def id_of(value: Any) -> str | None:
    """The id in a cell, with `17.0` as 17; None where the value is missing.

    Raises:
        ValueError: a program rounded the number, so that different ids may have become equal.
    """
    text = text_of(value)
    if text is None:
        return None
    if ROUNDED.fullmatch(text) or (isinstance(value, float) and abs(value) > EXACT):
        raise ValueError(f"'{text}' is a rounded number")
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text
