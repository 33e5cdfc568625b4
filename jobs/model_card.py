"""`MODEL_CARD.md`: what a checkpoint was made of, how well it does on whom, and what it must not be used for.

Written from the run's own record alone; strangers' names pass through `_cell`, which leaves no Markdown in them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mma.checkpoint import load_mma, project_version
from rnn.model import load_model
from rnn.reactions import REACTIONS

CARD_FILE = "MODEL_CARD.md"
NOT_FOR = {
    "hiring or promotion": "what a face shows in a clip says nothing of what a person can do",
    "grading or attention scores": "a still face is no sign of a mind elsewhere",
    "policing, border or crowd control": "errors fall on people who cannot object, and unevenly on groups",
    "lie detection": "no facial action tells a lie from a truth",
    "diagnosis or treatment": "it was never tested on patients",
}
_LIMITS_OF_LABELS = (
    "Labels are reports of what people felt or what raters saw. Neither is what a face means, and how people show what "
    "they feel differs between persons and cultures."
)


def mma_card(record: Mapping[str, Any], scores: Mapping[str, Any], model: bytes) -> str:
    """Of a run of `train-mma`: its record, what `metrics.json` holds, the checkpoint."""
    loaded = load_mma(model)
    prepared, config = record["prepared"], loaded.config
    sections = [
        _head("MMA network", "valence-arousal, basic expressions and action units of a face crop", record),
        _warning([each["format"] for each in prepared["sets"]], ("synth",)),
        _facts(
            {
                "trunk": config.trunk,
                "descriptors": f"{len(config.descriptors)} ({config.descriptor_set})",
                "weights, sha256": loaded.weights_sha256,
                "crops": _pairs(config.crop),
                "detector": _pairs(prepared["detector"]),
                "start of the weights": _pairs(record["init"]),
                "epochs": f"{len(scores['history'])}, the best by validation kept ({scores['best_epoch'] + 1})",
            }
        ),
        "## Data\n\n"
        + _table(
            ("set", "format", "from", "rows left out by the importer"),
            [(s["name"], s["format"], s["uri"], _pairs(s["left_out"]) or "none") for s in prepared["sets"]],
        )
        + "\n\n"
        + _table(
            ("split", "samples", "valence-arousal", "expressions", "action units"),
            [
                (split, *(f"{c[key]:,}" for key in ("samples", "valence_arousal", "expressions", "action_units")))
                for split, c in prepared["samples"].items()
            ],
        )
        + f"\n\nHow the crops came about, as shares: {_pairs(prepared['crops'])}.",
        "## Training\n\n" + _facts(_flat(record["options"].get("training", {}))),
    ]
    if by_name := scores.get("scores", {}).get("by_name"):
        rows = [
            (name, "CCC" if "ccc" in one else "F1", f"{one.get('ccc', one.get('f1', 0.0)):.3f}", f"{one['n']:,}",
             f"{one['threshold']:.2f}" if "threshold" in one else "")
            for name, one in by_name.items()
        ]  # fmt: skip
        sections.append(
            f"## Scores on {scores['split']}\n\nThresholds were chosen on validation. n: labelled frames; of "
            "expressions and action units those that show it.\n\n"
            + _table(("descriptor", "score", "", "n", "threshold"), rows)
        )
    return _joined([*sections, *_end()])


def reaction_card(record: Mapping[str, Any], scores: Mapping[str, Any], model: bytes) -> str:
    """Of a run of `train`: its record, what `metrics.json` holds, the checkpoint."""
    loaded, data = load_model(model, name="the model"), record["data"]
    network = loaded.networks[0]
    weights = data["spec"]["weights"]
    sections = [
        _head("Masked RNN", "7 reaction intensities of a video", record),
        _warning(["truth" if "truth" in weights else "", *data["stores"]], ("truth",)),
        _facts(
            {
                "network": _pairs(vars(network.config)),
                "seeds": ", ".join(map(str, loaded.seeds)),
                "weights, sha256": loaded.sha256(),
                "steps": f"{loaded.step_s:g} s each, at most {network.steps}",
                "sequences": _pairs(vars(loaded.sequence)),
                "descriptors": ", ".join(loaded.normaliser.names),
                "preset": str(loaded.record.get("preset")),
                "calibrated on": str(loaded.record.get("calibrated_on")),
            }
        ),
        "## Data\n\n"
        + _facts({"stores": ", ".join(data["stores"]), "labels": f"{data['labels']} ({data['layout']})"})
        + "\n\n"
        + _table(
            ("split", "videos", "with a face", "subjects"),
            [
                (split, f"{count:,}", f"{data['with_sequence'][split]:,}", str(data["subjects"][split] or "unknown"))
                for split, count in data["videos"].items()
            ],
        )
        + (f"\n\nCountries: {_pairs(data['countries'])}." if data["countries"] else "")
        + f"\n\nThe store's own spec: weights {_pairs(weights)}; detector {_pairs(data['spec']['detector'])}.",
        "## Training\n\n" + _facts(_flat(record["options"].get("fit", {}))),
    ]
    for split, told in scores["splits"].items():
        ends, by = told["interval"], told["by_reaction"]
        floors = {name: each["by_reaction"] for name, each in told["floors"].items()}
        rows = [
            (name, f"{by[name]['pearson']:.3f}", f"{by[name]['ccc']:.3f}", f"{by[name]['absolute_error']:.3f}",
             f"{by[name]['n']:,}", *(f"{each[name]['pearson']:.3f}" for each in floors.values()))
            for name in REACTIONS
        ]  # fmt: skip
        sections.append(
            f"## Scores on {split}\n\nMean Pearson r **{told['mean_pearson']:.3f}**, 95 % {ends['low']:.3f} to "
            f"{ends['high']:.3f} by {ends['by']}, over {told['labelled']:,} labelled videos.\n\n"
            + _table(("reaction", "r", "CCC", "abs. error", "n", *(f"r of {each}" for each in floors)), rows)
        )
    return _joined([*sections, *_end()])


def _head(kind: str, gives: str, record: Mapping[str, Any]) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"# {kind}: run {_cell(record['run_id'])}\n\nGives {gives}. After MMA-MRNNet (arXiv 2303.00180), made by "
        f"MMA-MRNNet on Ray {project_version()} on {day}."
    )


def _warning(given: Iterable[str], made: Sequence[str]) -> str:
    if any(each in made for each in given):
        return "> **Trained on a made corpus of drawn faces: its scores say nothing of real ones.**"
    return ""


def _end() -> list[str]:
    rows = "\n".join(f"- **{use}**: {why}." for use, why in NOT_FOR.items())
    return [
        "## Limits\n\n" + _LIMITS_OF_LABELS + " Scores hold for people and recordings like those it was trained on; "
        "look at the subgroup table of `evaluate` before you compare groups.",
        "## Not for\n\n" + rows,
    ]


def _facts(facts: Mapping[str, Any]) -> str:
    return _table(("", ""), [(name, str(value)) for name, value in facts.items() if value not in (None, "")])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: Any) -> str:
    """Without anything that Markdown or HTML would read."""
    plain = " ".join(str(text).split())
    for sign in "\\`*_{}[]<>|#":
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def _joined(sections: Sequence[str]) -> str:
    return "\n\n".join(section for section in sections if section) + "\n"
