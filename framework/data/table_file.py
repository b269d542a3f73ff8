"""Reads a table: CSV, TSV, Excel, Parquet or JSON Lines, as rows of cells, each with its place in the file."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from framework.data.cells import text_of
from framework.registry.types import TABLES
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded

LARGEST = 1_000_000_000  # bytes of the file
LONGEST = 10_000_000  # characters of one cell; more is a quote that is never closed
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
SAMPLE = 200  # rows from which the separator is found
ENCODINGS = "utf-8, utf-16, gb18030, latin-1"
FREQUENT = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")  # signs and the 3755 most frequent characters of GB 2312
INSTALL = "Run: pip install 'sonoscribe[table]'"
KEY = "data.dataset.file"


class Row(NamedTuple):
    """Cells by column. `place` is `line 7` of a text, `row 7` of a workbook as Excel counts, or of a Parquet file."""

    place: str
    cells: dict[str, Any]


@dataclass
class Table:
    """The rows of a file that are not empty.

    Attributes:
        columns: as written, without spaces around them.
        problems: rows that cannot be read, each with its place.
        form: how the file was read: encoding, separator, sheet.
        empty: the number of rows without any value.
    """

    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    problems: list[UserError] = field(default_factory=list)
    form: str = ""
    empty: int = 0

    def add(self, place: str, cells: Iterable[Any]) -> None:
        """Adds a row, unless it is empty."""
        found = dict(zip(self.columns, cells))
        if all(not isinstance(value, (list, dict)) and text_of(value) is None for value in found.values()):
            self.empty += 1
        else:
            self.rows.append(Row(place, found))


def read_table(
    path: Path, *, encoding: str | None = None, separator: str | None = None, sheet: str | None = None
) -> Table:
    """Reads a table. Encoding and separator are found if they are None; the sheet of a workbook is then the first.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read as a whole, or a package for it is missing.
    """
    form = TABLES.get(path.suffix.lower())
    if form is None:
        raise UserError("wrong-format", "not a table", place=path, expected=f"a file with {', '.join(TABLES)}")
    for name, value, forms in (
        ("encoding", encoding, ("text", "lines")), ("separator", separator, ("text",)), ("sheet", sheet, ("excel",)),
    ):  # fmt: skip
        if value is not None and form not in forms:
            found = f"the file is {path.suffix}, which has no {name}"
            raise UserError("ignored-setting", found, place=f"data.dataset.{name}")
    content = read_bounded(path, LARGEST)
    if form == "excel":
        table = _read_excel(path, content, sheet)
    elif form == "parquet":
        table = _read_parquet(path, content)
    else:
        text, encoding = _decode(path, content, encoding)
        if form == "lines":
            table = _read_lines(path, text)
            table.form = f"encoding {encoding}"
        else:
            text, separator = _separated(text, None if separator is None else SEPARATORS[separator])
            table = _read_text(path, text, separator)
            named = next(name for name, sign in SEPARATORS.items() if sign == separator)
            table.form = f"encoding {encoding}, separator {named}"
    twice = [name for name, count in Counter(table.columns).items() if count > 1 and name]
    if twice:
        raise UserError("duplicate-key", f"two columns are named '{twice[0]}'", place=path, hint="Rename one.")
    if not table.rows and not table.problems:
        raise UserError("wrong-format", "no row below the header", place=path, expected="a header and a row per image")
    return table


def _decode(path: Path, content: bytes, encoding: str | None) -> tuple[str, str]:
    """The text, and the encoding in which it was decoded."""
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except (LookupError, ValueError):
            raise UserError(
                "unknown-name", f"no encoding '{encoding}'", place="data.dataset.encoding", expected=ENCODINGS
            ) from None
    name = encoding or _encoding_of(content)
    try:
        text = content.decode(name).removeprefix("\ufeff")
    except (UnicodeError, LookupError) as error:  # LookupError: a codec such as `zip`, not of text
        at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(
            "unreadable-file", f"not {name}{at}", place=path, hint=f"Set data.dataset.encoding: {ENCODINGS}, or other."
        ) from None
    if "\0" in text:
        kind = "a workbook" if zipfile.is_zipfile(io.BytesIO(content)) else "binary data"
        raise UserError(
            "unreadable-file", f"holds {kind}, no text", place=path, expected=f"a text, by its ending {path.suffix}",
            hint="Rename it to .xlsx if Excel opens it.",
        )  # fmt: skip
    return text, name


def _encoding_of(content: bytes) -> str:
    """The likely encoding of a text: UTF-8 or UTF-16 for sure, or else GB18030 or Latin-1.

    It is GB18030 if most of its bytes above 127 are pairs of a frequent Chinese character; letters with accents mostly
    stand alone, and two of them are a rare one.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = content[:2000]
    if start.count(0) > len(start) // 4:
        return "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
    for name in ("utf-8", "gb18030", "cp1252"):
        try:
            content.decode(name)
        except UnicodeDecodeError:
            continue
        high = len(content.translate(None, bytes(range(128))))
        if name != "gb18030" or 4 * len(FREQUENT.findall(content)) > high:
            return name
    return "latin-1"


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a text, each with the line in which it starts.

    Raises:
        csv.Error: (reason, line) of a record that cannot be read.
    """
    csv.field_size_limit(LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for record in reader:
            yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(str(error), line) from None


def _separated(text: str, separator: str | None) -> tuple[str, str]:
    """The text without Excel's line `sep=;`, and the separator, which cuts the most rows like the header."""
    first = re.match(r"sep=(.)\r?\n", text)
    if first:
        separator = separator or (first[1] if first[1] in SEPARATORS.values() else None)
        text = "\n" + text[first.end() :]  # lines count as an editor shows them
    if separator is not None:
        return text, separator

    def fit(sign: str) -> tuple[int, int]:
        widths: list[int] = []
        try:
            for _, record in _records(text, sign):
                widths += [len(record)] if record else []
                if len(widths) > SAMPLE:
                    break
        except csv.Error:
            pass  # reading fails there as well
        return (sum(width == widths[0] for width in widths), widths[0]) if widths and widths[0] > 1 else (0, 1)

    return text, max(SEPARATORS.values(), key=fit)


def _read_text(path: Path, text: str, separator: str) -> Table:
    table = Table([])
    try:
        for line, record in _records(text, separator):
            if not table.columns:
                table.columns = _header(record) if any(cell.strip() for cell in record) else []
            elif any(cell.strip() for cell in record[len(table.columns) :]) or 0 < len(record) < len(table.columns):
                found = f"{len(record)} cells, and the header has {len(table.columns)}"
                hint = "A cell with a separator or a line break needs quotes around it."
                table.problems.append(UserError("wrong-format", found, place=f"line {line}", hint=hint))
            else:
                table.add(f"line {line}", record)
    except csv.Error as error:
        hint = "Look for a quote that is not closed; a quote in a quoted cell is written twice."
        reason, line = error.args
        raise UserError("wrong-format", reason, place=f"{path}:{line}", hint=hint) from None
    return table


def _read_lines(path: Path, text: str) -> Table:
    table = Table([])
    found: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            table.problems.append(UserError("wrong-format", f"not JSON: {reason}", place=f"line {number}"))
            continue
        if isinstance(value, dict):
            found.append((number, value))
        else:
            table.problems.append(
                UserError("wrong-type", "not an object", place=f"line {number}", expected='{"image": ..., ...}')
            )
    keys = list(dict.fromkeys(key for _, value in found for key in value))
    table.columns = _header(keys)
    for number, value in found:
        table.add(f"line {number}", [value.get(key) for key in keys])
    return table


def _read_excel(path: Path, content: bytes, sheet: str | None) -> Table:
    try:
        import openpyxl
    except ImportError:
        raise UserError("missing-package", "Excel files need openpyxl", place=KEY, hint=INSTALL) from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        names = [each.title for each in book.worksheets]
        if not names or (sheet is not None and sheet not in names):
            raise UserError(
                "unknown-name", f"no sheet '{sheet or ''}'", place="data.dataset.sheet", expected=", ".join(names)
            )
        rows = [list(row) for row in book[sheet or names[0]].iter_rows(values_only=True)]
    except UserError:
        raise
    except Exception as error:  # openpyxl raises whatever a damaged archive or part of it causes
        raise UserError(
            "unreadable-file", f"not a workbook ({error})", place=path, hint="Save it in Excel as .xlsx or .csv."
        ) from None
    others = ", ".join(name for name in names if name != (sheet or names[0]))
    table = Table([], form=f"sheet '{sheet or names[0]}'{f', not {others}' if others else ''}")
    for number, row in enumerate(rows, 1):
        if not table.columns:
            table.columns = _header(row) if any(text_of(cell) for cell in row) else []
        else:
            table.add(f"row {number}", row)
    return table


def _read_parquet(path: Path, content: bytes) -> Table:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("missing-package", "Parquet files need pyarrow", place=KEY, hint=INSTALL) from None
    try:
        found = pyarrow.parquet.read_table(io.BytesIO(content))
        table = Table(_header(found.column_names))
        for number, row in enumerate(zip(*(column.to_pylist() for column in found.columns)), 1):
            table.add(f"row {number}", row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError("unreadable-file", f"not Parquet ({str(error)[:200]})", place=path) from None
    return table


def _header(cells: Sequence[Any]) -> list[str]:
    """Names of the columns in the Unicode form that keyboards give."""
    return [unicodedata.normalize("NFC", "" if cell is None else str(cell).strip()) for cell in cells]
