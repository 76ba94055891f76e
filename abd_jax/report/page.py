"""What all pages share: one self-contained HTML file from a template, no network, no second file."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from abd_jax.report.formats import duration, entries, moment, nested, number, percent, signed
from abd_jax.report.names import short_name

PAGE_FILE = "report.html"


def fill(template: str, **values: Any) -> str:
    """A page as text, from a template of `report/templates`."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    """Where templates are found, with the filters, style and script that all pages have."""
    made = Environment(
        loader=PackageLoader("abd_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, duration, moment, signed, number, entries, short_name)
    made.filters |= {function.__name__: function for function in filters}
    made.tests["nested"] = nested
    templates = resources.files("abd_jax.report") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("style.css", "sort.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    made.globals |= {"style": Markup(style), "script": Markup(script), "script_digest": digest}
    return made
