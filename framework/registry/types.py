"""Types of recipe keys that pydantic does not name itself; plugins may use them in their signatures."""

from typing import Annotated

from pydantic import Field

Fraction = Annotated[float, Field(ge=0, le=1)]
