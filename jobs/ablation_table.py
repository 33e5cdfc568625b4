"""The table of an ablation as csv, as Markdown, and as a figure of differences with their intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import matplotlib.figure

from jobs.reaction_figures import FAINT, INK, LINE, plain, png

LEVEL = 0.05


@dataclass
class Row:
    """A variant's score and its difference from the default; mean Pearson r over seeds and reactions."""

    number: int
    """Of its trial."""
    group: str
    variant: str
    mean_pearson: float | None = None
    """The mean of the seeds' own scores."""
    spread: float | None = None
    """Standard deviation over seeds."""
    difference: float | None = None
    """To the default, with the ends of its 95 % interval, paired, seeds averaged inside each draw."""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Two-sided, of the same draws."""
    p_holm: float | None = None
    """Corrected for the number of variants (Holm)."""
    by: str = ""
    """What was drawn: subject, or video."""
    epochs: int = 0
    busy_s: float = 0.0
    error: str | None = None

    @property
    def sure(self) -> bool:
        """Whether the corrected p is under .05."""
        return self.p_holm is not None and self.p_holm < LEVEL


def table_csv(rows: Sequence[Row]) -> bytes:
    """All columns of `Row`; empty where there is nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    for row in rows:
        values = [getattr(row, name) for name in names]
        writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in values])
    return buffer.getvalue().encode()


def table_markdown(rows: Sequence[Row], split: str, seeds: int) -> str:
    """A table for people; what is surely different from the default stands in bold."""
    lines = [
        f"| variant | {split}, mean r | difference to the default | 95 % | p (Holm) |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    group = ""
    for row in rows:
        if row.group != group and row.difference is not None:
            group = row.group
            lines.append(f"| *{group}* | | | | |")
        if row.error is not None:
            lines.append(f"| {row.variant} | failed: {row.error.replace('|', '/')} | | | |")
        elif row.difference is None:
            lines.append(f"| **{row.variant or 'default'}** | {row.mean_pearson:.3f} ± {row.spread:.3f} | | | |")
        else:
            told = f"{row.difference:+.3f}".replace("-", "−")
            ends = f"{row.low:+.3f} to {row.high:+.3f}".replace("-", "−")
            told = f"**{told}**" if row.sure else told
            lines.append(f"| {row.variant} | {row.mean_pearson:.3f} ± {row.spread:.3f} | {told} | {ends} | {_p(row)} |")
    by = rows[0].by
    lines += [
        "",
        f"Mean over {seeds} seed{'s' if seeds > 1 else ''} ± their deviation; the intervals are of the paired "
        f"difference over draws by {by}, seeds averaged inside each draw; p corrected for {len(rows) - 1} comparisons, "
        f"bold under {LEVEL:g}.",
    ]
    return "\n".join(lines) + "\n"


def _p(row: Row) -> str:
    return "" if row.p_holm is None else "< .001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"


def draw_table(rows: Sequence[Row], split: str) -> bytes:
    """PNG: each variant's difference to the default with its interval; red or blue where it is sure."""
    shown = [row for row in rows if row.difference is not None]
    figure = matplotlib.figure.Figure(figsize=(9, 1.2 + 0.27 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=1)
    for place, row in enumerate(shown):
        if row.difference is None or row.low is None or row.high is None:
            continue
        colour = FAINT if not row.sure else INK if row.difference > 0 else LINE
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
        axes.plot(row.difference, place, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(shown)), [f"{row.variant}   [{row.group}]" for row in shown], fontsize=8)
    axes.invert_yaxis()
    default = rows[0].mean_pearson
    axes.set_xlabel(
        f"difference of mean Pearson r on {split} to the default ({default:.3f}), 95 % by {rows[0].by}; "
        "grey: not sure after Holm's correction",
        fontsize=8,
    )
    plain(axes)
    axes.tick_params(axis="y", labelsize=8)
    return png(figure)
