"""`MODEL_CARD.md`: what a checkpoint was made of, how well it does on whom, and what it must not be used for.

`model_card` fills one template for both stages from plain facts (`CardFacts`), which `jobs.card_facts` takes from a
run's own record. Whatever is printed is escaped, and loses the secrets of its URIs: names are strangers'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import jinja2

from cluster.uri import display

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. Values are plain: text, numbers, bools, None, lists and mappings of these.

    A row maps columns to values. A table has the columns in which some of its rows has a value.
    """

    kind: Literal["mma", "reactions"]
    name: str
    """The run's id."""
    weights_sha256: str
    date: str
    """Of the card, YYYY-MM-DD."""
    versions: Mapping[str, str]
    """Package -> version that wrote the weights."""
    warnings: Sequence[str] = ()
    """What must be known before anything else: a made corpus, untrained weights."""
    network: Row
    """Its shape, and what its weights started from."""
    sources: Sequence[Row]
    """A row a label set or store; the column `from` holds a URI."""
    splits: Sequence[Row]
    """A row a split: how many samples or videos, labelled how, of how many people."""
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Such as Country or Age -> value -> videos."""
    data_notes: Sequence[str] = ()
    preprocessing: Row
    """Crops and detector; or descriptors, grid, filling and normalisation, with the store's spec."""
    settings: Row
    """Of the training, by dotted name."""
    defaults: Row
    """What they are where nobody gives any, under the same names."""
    scores: Sequence[Row] = ()
    """By split: `split`, `notes` (sentences), and as rows `headlines`, `rows` (with n, and interval, floors and ceiling
    where known) and perhaps `groups` (of subgroups)."""
    limits: Sequence[str] = ()
    """Beside those that hold for every network."""

    def __post_init__(self) -> None:
        if self.kind not in ("mma", "reactions"):
            raise ValueError(f"there is no model card of kind {self.kind!r}: give mma or reactions")


def model_card(kind: str, facts: Mapping[str, Any]) -> str:
    """The card as Markdown; `facts` are the other fields of `CardFacts`.

    Raises ValueError for another kind, and TypeError, with its name, for a fact that is missing or unknown.
    """
    card = CardFacts(kind=cast(Any, kind), **facts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs", "templates"),
        finalize=_escaped,  # everything that is printed, so that nothing can be forgotten
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "table": _table, "rows": _two_columns}
    changed = {name: value for name, value in card.settings.items() if value != card.defaults.get(name)}
    text = environment.get_template("model_card.md").render(
        card=card,
        changed=[{"setting": name, "value": changed[name], "default": card.defaults.get(name)} for name in changed],
        unchanged=[{"setting": name, "value": card.settings[name]} for name in card.settings if name not in changed],
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# --- from values to Markdown ---


class _Markdown(str):
    """Escaped already."""


def in_words(value: Any) -> str:
    """A value in one line, without secrets, not escaped yet."""
    if isinstance(value, Mapping):
        told = [f"{in_words(name)} {in_words(each)}" for name, each in value.items() if each is not None]
        return ", ".join(told) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"({in_words(each)})" if isinstance(each, list) else in_words(each) for each in value) or "–"
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, (bool, float)):
        return f"{value:g}" if isinstance(value, float) else "yes" if value else "no"
    # Each URI by itself: one may stand behind a sign, as in synth=s3://bucket/corpus.
    parts = re.split(r"(?<![A-Za-z0-9+.-])(?=[A-Za-z][A-Za-z0-9+.-]*://)", " ".join(str(value).split()))
    return "".join(display(part) for part in parts)


def _escaped(value: Any) -> _Markdown:
    """Without anything that Markdown or HTML would read; a `_` inside a word is nothing of that kind."""
    if isinstance(value, _Markdown):
        return value
    signs = r"[\\`*{}\[\]<>|#~$&]|(?<![^\W_])_|_(?![^\W_])|:(?=//)"
    return _Markdown(re.sub(signs, r"\\\g<0>", in_words(value)))


def _code(value: Any) -> _Markdown:
    """As a code span, where nothing in it could end the span or its cell."""
    words = in_words(value)
    return _escaped(value) if re.search(r"[`|]", words) or words == "–" else _Markdown(f"`{words}`")


def _table(rows: Sequence[Row], code: Sequence[str] = ()) -> _Markdown:
    """Rows under their columns; `code`: columns whose cells are code spans."""
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    lines: list[list[str]] = [[_escaped(name) for name in columns], ["---"] * len(columns)]
    lines += [[(_code if name in code else _escaped)(row.get(name)) for name in columns] for row in rows]
    return _Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines) if columns else "")


def _two_columns(facts: Row) -> _Markdown:
    told = {name: value for name, value in facts.items() if value not in (None, "", {}, [])}
    return _Markdown("\n".join(f"| {_escaped(name)} | {_escaped(value)} |" for name, value in told.items()))
