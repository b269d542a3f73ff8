"""Renders the HTML pages of runs and grids from templates: one offline file each, every value escaped."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Beside the escaping: a browser runs the page's own script and loads nothing, whatever a label or a report contains.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'; base-uri 'none'; "
    "form-action 'none'"
)
SCRIPT = "page.js"  # of every page


def render(template: str, **context: Any) -> str:
    """Returns the page of a template in `framework/pages/templates`.

    Values are escaped unless they are `Markup`, which only `Plot` and this module create. A template fails on a name
    that the context lacks.
    """
    return _ENVIRONMENT.get_template(template).render(context)


def macro(name: str) -> Callable[..., Markup]:
    """A macro of templates/parts.html.j2 as a function."""
    found: Callable[..., Markup] = getattr(_ENVIRONMENT.get_template("parts.html.j2").module, name)
    return found


def sort_key(value: float | str | None) -> str | None:
    """The text that a table cell is sorted by; cells without one (no value, NaN, infinity) come last."""
    if value is None or (not isinstance(value, str) and not math.isfinite(value)):
        return None
    return str(value)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("framework.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sort_key"] = sort_key
    environment.globals |= {"style": Markup(_source(environment, "style.css")), **_scripts(environment, SCRIPT)}
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _scripts(environment: Environment, *names: str) -> dict[str, str]:
    script = "".join(_source(environment, name) for name in names)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "policy": POLICY.format(digest)}


def with_script(name: str) -> dict[str, str]:
    """Values for `render` that give a page a second script, and the policy that allows it: `script` and `policy`."""
    return _scripts(_ENVIRONMENT, SCRIPT, name)


_ENVIRONMENT = _environment()
