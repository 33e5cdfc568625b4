"""From `--labels FORMAT=URI` to one table of samples: every set named, every row with a split, nobody on two sides.

The sets are read on the driver (they are tables); pixels are cut afterwards by `jobs.cropping`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import Folder
from cluster.uri import StorageError, display, parse_uri
from jobs.outcome import InputError, input_errors
from jobs.progress import say
from mma.labels import FORMATS, read_labels
from mma.labels.table import ACTION_UNITS, SPLITS, VALENCE_AROUSAL

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """One label set of a run."""

    name: str
    """Its format's name, with a number from the second of that format on: `synth`, `synth-2`."""
    format: str
    uri: str
    table: pa.Table
    """Rows of `LABEL_SCHEMA`; `split` has no null where some subjects were held out."""
    notes: Mapping[str, int]


def read_sets(
    labels: Sequence[str], *, val_fraction: float | None, max_missing_fraction: float, every: int = 1
) -> list[NamedSet]:
    """The label sets of `--labels`, in order.

    Args:
        labels: FORMAT=URI each.
        val_fraction: share of the subjects (of the sources, where no subject is known) that is held out for validation
            in sets without a validation split of their own. None: splits are left as the sets have them.
        max_missing_fraction: `--max-missing-fraction`: more missing images than this share of a set end the run.
        every: `--every`: keep each n-th labelled frame of a video.

    Raises:
        InputError: no such format or place, another layout, too much missing, or a subject on two sides of a split.
    """
    sets: list[NamedSet] = []
    for words in labels:
        form, sign, uri = words.partition("=")
        if not sign or form not in FORMATS:
            raise InputError(f"--labels {display(words)}: give FORMAT=URI, FORMAT being one of {', '.join(FORMATS)}")
        with input_errors(ValueError, StorageError, OSError, option=f"--labels {form}={display(uri)}"):
            folder, file = _place(uri)
            found = read_labels(form, folder, file)
        same = sum(each.format == form for each in sets)
        name = f"{form}-{same + 1}" if same else form
        rows, missing = found.table.num_rows, found.notes.get("missing", 0)
        notes = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in found.notes.items() if count)
        say(f"labels of {name}: {rows:,} rows{f' ({notes} left out)' if notes else ''}")
        if missing > max_missing_fraction * (rows + missing):
            raise InputError(
                f"--labels {form}={display(uri)}: {missing:,} of {rows + missing:,} labelled images are not there, "
                f"more than --max-missing-fraction {max_missing_fraction}: complete the set, or raise that option"
            )
        table = _thinned(found.table, every)
        if val_fraction is not None:
            table = _with_splits(table, val_fraction)
        _check_subjects(table, f"--labels {form}={display(uri)}")
        sets.append(NamedSet(name=name, format=form, uri=display(uri), table=table, notes=found.notes))
    return sets


def sample_table(sets: Sequence[NamedSet]) -> pa.Table:
    """All rows of all sets, with a column `set` in front."""
    return pa.concat_tables(
        [each.table.add_column(0, "set", pa.array([each.name] * each.table.num_rows, pa.string())) for each in sets]
    ).combine_chunks()


def mix_shares(mix: Sequence[str], names: Sequence[str]) -> dict[str, float] | None:
    """`--mix NAME=SHARE` -> shares by set; sets not named keep their size's share only if none is named (None).

    Raises:
        InputError: no such set, or no number above 0; or some sets are named and others not.
    """
    shares = {}
    for words in mix:
        name, _, share = words.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise InputError(f"--mix {words}: give NAME=SHARE, such as affectnet=2") from None
        if name not in names or not 0 < shares[name] < float("inf"):
            raise InputError(f"--mix {words}: the sets are {', '.join(names)}, and a share is a number above 0")
    if shares and set(shares) != set(names):
        raise InputError(f"--mix gives no share to {', '.join(set(names) - set(shares))}: name every set, or none")
    return shares or None


def told_samples(samples: pa.Table) -> dict[str, dict[str, int]]:
    """split -> counts of samples, and of those with valence, an expression, and some action unit."""
    told = {}
    for split in SPLITS:
        rows = samples.filter(pc.equal(samples["split"], split))
        units = np.zeros(rows.num_rows, bool)
        for name in ACTION_UNITS:
            units |= pc.is_valid(rows[name]).to_numpy()
        told[split] = {
            "samples": rows.num_rows,
            "valence_arousal": rows.num_rows - rows[VALENCE_AROUSAL[0]].null_count,
            "expressions": rows.num_rows - rows["expression"].null_count,
            "action_units": int(units.sum()),
        }
    return told


def _place(uri: str) -> tuple[Folder, str]:
    """The folder, and the name of a table in it where the URI names one."""
    place = parse_uri(uri)
    if place.name.lower().endswith(TABLE_SUFFIXES):
        above = str(place)[: -len(place.name)].rstrip("/") or "/"
        return Folder(above), place.name
    return Folder(str(place)), ""


def _thinned(table: pa.Table, every: int) -> pa.Table:
    """Each `every`-th labelled frame of each video; images stay."""
    if every == 1 or table["frame"].null_count == table.num_rows:
        return table
    source = table["source"].combine_chunks().dictionary_encode().indices.to_numpy()
    frame = pc.fill_null(table["frame"], -1).to_numpy()
    order = np.lexsort((frame, source))
    first = np.r_[True, np.diff(source[order]) != 0]
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - start
    return table.filter(pa.array((place % every == 0) | (frame < 0)))


def _with_splits(table: pa.Table, val_fraction: float) -> pa.Table:
    """Rows without a split become train or val by a hash of their subject: the same on every run, whatever the order.

    A set that has training rows and no validation rows gives some subjects of train to val in the same way.
    """
    split = table["split"].combine_chunks()
    has_val = pc.any(pc.equal(split, "val")).as_py()
    open_rows = (
        pc.is_null(split) if has_val else pc.or_(pc.is_null(split), pc.fill_null(pc.equal(split, "train"), False))
    )
    if not pc.any(open_rows).as_py():
        return table
    who = pc.coalesce(table["subject"], table["source"]).combine_chunks().dictionary_encode()
    held_out = np.array([_share(each) < val_fraction for each in who.dictionary.to_pylist()])
    drawn = pa.array(np.where(held_out[who.indices.to_numpy()], "val", "train"))
    split = pc.if_else(open_rows, drawn, split)
    return table.set_column(table.schema.get_field_index("split"), "split", split)


def _share(who: str) -> float:
    # Of the person alone, not of the set: sets may share people, who then stand on one side.
    digest = hashlib.sha256(who.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check_subjects(table: pa.Table, option: str) -> None:
    known = table.filter(pc.is_valid(table["subject"])).select(["subject", "split"])
    sides = known.group_by(["subject", "split"]).aggregate([]).group_by("subject").aggregate([("split", "count")])
    both = sides.filter(pc.greater(sides["split_count"], 1))
    if both.num_rows:
        raise InputError(
            f"{option}: {both.num_rows} subjects stand on two sides of the split, such as "
            f"{both['subject'][0].as_py()!r}: scores would be of people the network knows; give each one split"
        )
