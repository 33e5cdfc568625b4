"""The pages that jobs write: self-contained HTML from `jobs/templates`, whatever comes from a person escaped."""

from __future__ import annotations

import jinja2


def page_environment() -> jinja2.Environment:
    """Templates with the filters that all pages use: `thousands`, `score` (three digits, a dash for None), `share`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}".replace("-", "−")
    environment.filters["share"] = lambda value: f"{100 * max(0.0, min(1.0, abs(value or 0.0))):.2f}%"
    return environment
