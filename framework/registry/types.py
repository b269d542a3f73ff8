"""Types of recipe keys that pydantic does not name itself; plugins may use them in their signatures."""

from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

# How a table is read, by the ending of its name.
TABLES = {
    ".csv": "text",
    ".tsv": "text",
    ".txt": "text",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".parquet": "parquet",
    ".jsonl": "lines",
}
OTHER_TABLES = (".xls", ".ods", ".feather")


def _json_file(path: str) -> str:
    ending = PurePath(path).suffix.lower()
    if ending in OTHER_TABLES or TABLES.get(ending, "lines") != "lines":
        raise PydanticCustomError("file_form", "a JSON or JSON Lines file; the dataset 'table' reads tables")
    return path


def _table_file(path: str) -> str:
    if PurePath(path).suffix.lower() not in TABLES:
        endings = ", ".join(TABLES)
        raise PydanticCustomError("file_form", f"a table: {endings}; the dataset 'manifest' reads JSON")
    return path


Fraction = Annotated[float, Field(ge=0, le=1)]
JsonFile = Annotated[str, AfterValidator(_json_file)]
TableFile = Annotated[str, AfterValidator(_table_file)]
