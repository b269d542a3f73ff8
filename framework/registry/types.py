"""Types of recipe keys that pydantic does not name itself; plugins may use them in their signatures."""

from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods", ".parquet", ".feather")


def _no_table(path: str) -> str:
    if PurePath(path).suffix.lower() in TABLES:
        raise PydanticCustomError(
            "json_file", 'a JSON or JSON Lines file; from pandas: table.to_json("exams.json", orient="records")'
        )
    return path


Fraction = Annotated[float, Field(ge=0, le=1)]
JsonFile = Annotated[str, AfterValidator(_no_table)]
