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
    loader = PackageLoader("framework.pages")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sort_key"] = sort_key
    style, script = (loader.get_source(environment, name)[0] for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"style": Markup(style), "script": Markup(script), "policy": POLICY.format(digest)}
    return environment


_ENVIRONMENT = _environment()
