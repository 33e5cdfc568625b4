"""What an evaluation on frame sets leaves behind: `metrics.json`, `scores.csv`, `report.html`, a table for people."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.storage import Folder
from jobs.page import page_environment

METRICS_FILE = "metrics.json"
FILES = (METRICS_FILE, "scores.csv", "report.html")
COLUMNS = ("name", "family", "metric", "value", "n", "known", "threshold")
"""Of scores.csv; `value` is empty where a descriptor has no labels (an action unit: no positives)."""

FAMILIES = {"valence_arousal": "Valence and arousal", "expressions": "Expressions", "action_units": "Action units"}
HEADLINES = {
    "valence_ccc": "valence CCC",
    "arousal_ccc": "arousal CCC",
    "expression_f1": "expressions, macro F1",
    "au_f1": "action units, mean F1",
}
"""The scores that stand first, with their names for people."""


@dataclass(frozen=True, kw_only=True)
class FrameScores:
    """All that an evaluation gives, as plain JSON values."""

    model: str
    split: str
    seconds: float
    samples: int
    """Frames with a label and a face: what the scores are of."""
    scores: dict[str, Any]
    """`Stage1Metrics.scores` of all sets together."""
    floors: dict[str, Any]
    """`constant_floors`, of the same."""
    sets: dict[str, dict[str, Any]]
    """By set: `format`, `uri`, `samples`, `crops` (what became of its rows), `left_out` (by the importer), `scores` and
    `floors` (None without a sample)."""
    thresholds: dict[str, float]
    threshold_choice: str
    """Where the thresholds are from, in words."""
    constant: dict[str, str]
    """What the network predicts alike for every sample, with the words for it."""
    seen: list[str]
    """Sets whose rows here the network was trained or chosen on, as far as its record tells."""
    detector: dict[str, Any]
    precision: str
    network: dict[str, Any]
    """`trunk`, `descriptor_set`, `sha256` of the weights, and whether they are `random`."""
    families: dict[str, list[str]]
    """Names of the descriptors by family."""
    record: dict[str, Any]
    """What the checkpoint says of its training."""


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores that are one number each."""
    return {name: round(value, 6) for name, value in scores.items() if isinstance(value, float)}


def score_rows(told: FrameScores) -> list[dict[str, Any]]:
    """A row a descriptor, with `COLUMNS`, `floor`, and what is `constant` about it; None where nothing is known."""
    by_name, floors = told.scores["by_name"], told.floors["by_name"]
    labelled = sum(by_name[name]["n"] for name in told.families["expressions"])
    rows = []
    for family, names in told.families.items():
        for name in names:
            one = by_name[name]
            metric = "ccc" if "ccc" in one else "f1"
            known = {"valence_arousal": one["n"], "expressions": labelled}.get(family, one.get("known"))
            rows.append(
                {
                    "name": name,
                    "family": family,
                    "metric": metric,
                    "value": one[metric] if one["n"] else None,
                    "n": one["n"],
                    "known": known,
                    "threshold": told.thresholds.get(name),
                    "floor": floors[name] if one["n"] else None,
                    "constant": told.constant.get(name, ""),
                }
            )
    return rows


def write_scores(told: FrameScores, out: Folder) -> None:
    """Write the files; `metrics.json` last, since it says that the others are there."""
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(score_rows(told))
    out.write("scores.csv", sheet.getvalue().encode())
    out.write("report.html", html_page(told).encode())
    flat = {"metrics": numbers(told.scores), "floors": numbers(told.floors)}
    whole = {"job": "evaluate", **flat, **{name: value for name, value in asdict(told).items() if name != "floors"}}
    whole["floors_by_name"] = told.floors["by_name"]
    out.write(METRICS_FILE, json.dumps(whole, indent=1).encode())


def html_page(told: FrameScores) -> str:
    """The report: one file without anything to load; whatever comes from a person is escaped."""
    environment = page_environment()
    page = environment.get_template("frame_scores.html")
    return page.render(
        told=told,
        rows=score_rows(told),
        families=FAMILIES,
        headlines=HEADLINES,
        warnings=warnings_of(told),
        facts=model_facts(told),
    )


def warnings_of(told: FrameScores) -> list[str]:
    """What a reader must know before believing the numbers."""
    lines = []
    if told.network["random"]:
        lines.append("The weights are random: nobody trained this network, and its scores mean nothing.")
    if told.seen:
        lines.append(
            f"The network was trained or chosen on rows of {', '.join(told.seen)} that are scored here: "
            "this is no measure of how well it does on other people."
        )
    if told.threshold_choice.startswith(".5"):
        lines.append("Action units are scored at a threshold of .5, which nobody chose on validation.")
    if told.constant:
        units = [name for name in told.constant if name in told.families["action_units"]]
        words = [f"{name} {what}" for name, what in told.constant.items() if name not in units]
        words += [f"{', '.join(units)} at their thresholds (see the table)"] if units else []
        lines.append(f"Constant predictions: {'; '.join(words)}.")
    for family in told.scores["absent"]:
        lines.append(f"{FAMILIES[family]} have no labels here, and no score.")
    return lines


def model_facts(told: FrameScores) -> dict[str, str]:
    """What the report says of the model; of its record, whatever is there."""
    network, detector, record = told.network, told.detector, told.record
    facts = {
        "trunk": f"{network['trunk']}, {network['descriptor_set']}",
        "weights": network["sha256"],
        "thresholds": told.threshold_choice,
        "precision": told.precision,
        "detector": f"{detector['detector']}, detect_every {detector['detect_every']}, {detector['detect_size_px']} px",
    }
    crops = _mapping(record.get("crops"))
    facts["trained on"] = ", ".join(f"{each['name']} ({each['uri']})" for each in trained_on(record))
    facts["training samples"] = ", ".join(
        f"{split} {each['samples']:,}"
        for split, each in _mapping(record.get("samples")).items()
        if isinstance(each, Mapping) and isinstance(each.get("samples"), int)
    )
    facts["its crops"] = ", ".join(f"{how} {share:.1%}" for how, share in crops.items() if isinstance(share, float))
    if isinstance(epochs := record.get("epochs"), int):
        best = record.get("best_epoch")
        facts["epochs"] = f"{epochs}, the best of them {best + 1}" if isinstance(best, int) else str(epochs)
    facts["run"] = str(record.get("run_id", ""))
    return {term: words for term, words in facts.items() if words}


def trained_on(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The label sets that a checkpoint's record names, each with `name`, `format` and `uri`."""
    sets = record.get("sets")
    found = [_mapping(each) for each in sets] if isinstance(sets, list) else []
    return [{key: str(each.get(key, "")) for key in ("name", "format", "uri")} for each in found]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def print_scores(told: FrameScores) -> None:
    """The table, on stderr."""
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 100, highlight=False)
    table = Table(title=Text(f"{told.model} on {told.split}: {told.samples:,} samples"), title_justify="left")
    for name in ("descriptor", "metric", "score", "floor", "n", "threshold", ""):
        numeric = name not in ("descriptor", "metric", "")
        table.add_column(name, justify="right" if numeric else "left")
    for name, words in HEADLINES.items():
        table.add_row(Text(words, "bold"), "", _told(told.scores[name]), _told(told.floors[name]), "", "", "")
    family = ""
    for row in score_rows(told):
        if row["family"] != family:
            table.add_section()
            family = row["family"]
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.2f}"
        value, floor = _told(row["value"]), _told(row["floor"])
        table.add_row(row["name"], row["metric"], value, floor, f"{row['n']:,}", threshold, row["constant"])
    console.print(table)
    print(f"thresholds: {told.threshold_choice}", file=sys.stderr)
    for line in warnings_of(told):
        print(line, file=sys.stderr)


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
