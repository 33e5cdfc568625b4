"""From `--labels` to one table: names, splits that no subject straddles, and what is refused, without Ray."""

import label_files as files
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.cli import main
from jobs.label_sets import mix_shares, read_sets, sample_table, told_samples
from jobs.outcome import InputError

SETTINGS = {"val_fraction": 0.15, "max_missing_fraction": 0.05}


def table_of(folder, name: str = "frames.csv", *, subjects: int = 40, frames: int = 3, split: str | None = None) -> str:
    """A table of this project's own: some frames of a video a subject, rows in the order of frames."""
    columns = ["video_id", "frame", "subject", "valence", *(["split"] if split is not None else [])]
    lines = [",".join(columns)]
    for frame in range(frames):
        for subject in range(subjects):
            lines.append(f"v{subject},{frame},s{subject},0.5" + (f",{split}" if split is not None else ""))
    files.write_lines(folder / name, lines)
    files.touch(folder, *(f"v{subject}.mp4" for subject in range(subjects)))
    return f"frames={folder}"


def sides(table: pa.Table) -> dict[str, str]:
    """subject -> its split; fails where one has two."""
    found: dict[str, str] = {}
    for row in table.select(["subject", "split"]).to_pylist():
        assert found.setdefault(row["subject"], row["split"]) == row["split"]
    return found


def refused(*labels: str, **settings) -> str:
    with pytest.raises(InputError) as error:
        read_sets(labels, **{**SETTINGS, **settings})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sets_of_one_format_are_numbered_and_stay_in_order(tmp_path):
    one, two = table_of(tmp_path / "a", subjects=2), table_of(tmp_path / "b", subjects=3)
    files.synth(tmp_path / "c")
    sets = read_sets([one, f"synth={tmp_path / 'c'}", two], **SETTINGS)
    assert [(each.name, each.format, each.table.num_rows) for each in sets] == [
        ("frames", "frames", 6), ("synth", "synth", 3), ("frames-2", "frames", 9),
    ]  # fmt: skip
    samples = sample_table(sets)
    assert samples.column_names[0] == "set"
    assert samples["set"].to_pylist() == ["frames"] * 6 + ["synth"] * 3 + ["frames-2"] * 9


def test_people_are_held_out_whole_and_the_same_ones_on_every_run(tmp_path):
    (one,) = read_sets([table_of(tmp_path / "a")], **SETTINGS)
    split = sides(one.table)
    assert set(split.values()) == {"train", "val"}
    assert 1 <= sum(each == "val" for each in split.values()) <= 14
    # The same subjects in another folder, another number of frames and another order of rows: the same choice.
    (two,) = read_sets([table_of(tmp_path / "b", frames=1)], **SETTINGS)
    assert sides(two.table) == split
    (more,) = read_sets([table_of(tmp_path / "a")], **{**SETTINGS, "val_fraction": 0.5})
    assert {who for who, each in split.items() if each == "val"} < {
        who for who, each in sides(more.table).items() if each == "val"
    }


def test_people_of_two_sets_are_held_out_in_both(tmp_path):
    labels = table_of(tmp_path)
    one, two = read_sets([labels, labels], **SETTINGS)
    assert sides(one.table) == sides(two.table)


def test_a_set_with_training_rows_alone_gives_some_people_to_validation(tmp_path):
    (one,) = read_sets([table_of(tmp_path, split="train")], **SETTINGS)
    assert set(sides(one.table).values()) == {"train", "val"}


def test_splits_of_the_sets_own_stay(tmp_path):
    files.synth(tmp_path)
    (one,) = read_sets([f"synth={tmp_path}"], **SETTINGS)
    assert one.table["split"].to_pylist() == ["train", "train", "val"]


def test_nothing_is_held_out_where_that_is_not_asked_for(tmp_path):
    (one,) = read_sets([table_of(tmp_path)], val_fraction=None, max_missing_fraction=0)
    assert one.table["split"].null_count == one.table.num_rows == 120


def test_people_are_sources_where_no_subject_is_known(tmp_path):
    lines = [f"v{number % 30},{number},0.1" for number in range(90)]
    files.write_lines(tmp_path / "frames.csv", ["video_id,frame,arousal", *lines])
    files.touch(tmp_path, *(f"v{number}.mp4" for number in range(30)))
    (one,) = read_sets([f"frames={tmp_path}"], **SETTINGS)
    pairs = set(zip(one.table["source"].to_pylist(), one.table["split"].to_pylist()))
    assert len(pairs) == 30
    assert {split for _, split in pairs} == {"train", "val"}


def test_a_subject_on_two_sides_is_refused_by_name(tmp_path):
    rows = ["a,0,anna,0.1,train", "b,0,anna,0.1,test", "c,0,bert,0.1,val"]
    files.write_lines(tmp_path / "frames.csv", ["video_id,frame,subject,valence,split", *rows])
    files.touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    told = refused(f"frames={tmp_path}")
    assert "1 subjects stand on two sides" in told
    assert "'anna'" in told


def test_every_keeps_each_nth_frame_of_each_video_in_its_order(tmp_path):
    rows = [f"{video},{frame},0.1" for frame in (5, 0, 9, 2, 7) for video in "ab"]
    files.write_lines(tmp_path / "frames.csv", ["video_id,frame,valence", *rows])
    files.touch(tmp_path, "a.mp4", "b.mp4")
    (one,) = read_sets([f"frames={tmp_path}"], every=2, **SETTINGS)
    kept = sorted((row["source"][-5:], row["frame"]) for row in one.table.to_pylist())
    assert kept == [("a.mp4", 0), ("a.mp4", 5), ("a.mp4", 9), ("b.mp4", 0), ("b.mp4", 5), ("b.mp4", 9)]


def test_every_leaves_images_alone(tmp_path):
    files.rafdb(tmp_path, [f"train_{number:05d}.jpg 5" for number in range(1, 8)])
    (one,) = read_sets([f"rafdb={tmp_path / 'basic'}"], every=3, **SETTINGS)
    assert one.table.num_rows == 7


def test_a_table_may_be_named_itself(tmp_path):
    table_of(tmp_path, "mine.csv", subjects=2)
    table_of(tmp_path, "frames.csv", subjects=40)
    (one,) = read_sets([f"frames={tmp_path / 'mine.csv'}"], **SETTINGS)
    assert one.table.num_rows == 6
    assert one.uri.endswith("mine.csv")


def test_too_many_missing_images_are_refused_with_both_numbers(tmp_path):
    labels = table_of(tmp_path, subjects=20, frames=1)
    (tmp_path / "v0.mp4").unlink()
    (one,) = read_sets([labels], **SETTINGS)
    assert one.table.num_rows == 19
    assert one.notes["missing"] == 1
    (tmp_path / "v1.mp4").unlink()
    told = refused(labels)
    assert "2 of 20 labelled images are not there" in told
    assert "--max-missing-fraction 0.05" in told
    assert read_sets([labels], val_fraction=0.15, max_missing_fraction=0.1)


@pytest.mark.parametrize("words", ["raf=x", "rafdb", "=x", ""])
def test_an_unknown_format_is_refused_with_those_there_are(words):
    told = refused(words)
    assert "FORMAT=URI" in told
    assert "affwild2" in told


def test_shares_by_name():
    names = ["synth", "frames", "frames-2"]
    assert mix_shares([], names) is None
    assert mix_shares(["synth=1", "frames=2.5", "frames-2=.5"], names) == {"synth": 1, "frames": 2.5, "frames-2": 0.5}
    for words, told in {
        "synth": "NAME=SHARE", "synth=much": "NAME=SHARE", "rafdb=1": "the sets are synth, frames, frames-2",
        "synth=0": "above 0", "synth=-1": "above 0", "synth=nan": "above 0", "synth=inf": "above 0",
        "synth=1": "no share to",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=told):
            mix_shares([words], names)


def test_samples_are_counted_by_split_and_by_what_is_known(tmp_path):
    files.synth(tmp_path)
    counts = told_samples(sample_table(read_sets([f"synth={tmp_path}"], **SETTINGS)))
    assert counts["train"] == {"samples": 2, "valence_arousal": 2, "expressions": 1, "action_units": 1}
    assert counts["test"]["samples"] == 0


def wrong_layouts(folder) -> dict[str, str]:
    files.write_lines(folder / "odd" / "frames.csv", ["picture,mood", "a.jpg,7"])
    files.write_lines(folder / "unit" / "frames.csv", ["image,AU01", "a.jpg,7"])
    (folder / "empty").mkdir()
    return {
        f"frames={folder / 'odd'}": "no column of a descriptor",
        f"frames={folder / 'unit'}": "AU01",
        f"frames={folder / 'none.csv'}": "none.csv",
        f"rafdb={folder / 'empty'}": "EmoLabel",
        f"synth={folder / 'empty'}": "frames.parquet",
        f"synth={folder / 'odd' / 'frames.csv'}": "is a file",
        f"disfa={folder / 'nowhere'}": "nowhere",
        "affectnet=ftp://host/x": "ftp://",
        f"raf-db={folder / 'empty'}": "FORMAT=URI",
    }


def test_wrong_layouts_are_one_line_and_exit_code_2(tmp_path, capfd):
    for words, told in wrong_layouts(tmp_path).items():
        code = main(["train-mma", "--labels", words, "--out", str(tmp_path / "m"), "--trunk", "tiny"])
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), (words, err)
        assert told in err, (words, err)
        assert len(err.strip().splitlines()) == 1, err
        assert "--labels" in err
    assert not (tmp_path / "m").exists()


def test_hash_shares_are_even(tmp_path):
    (one,) = read_sets([table_of(tmp_path, subjects=600, frames=1)], **SETTINGS)
    held_out = pc.sum(pc.equal(one.table["split"], "val")).as_py()
    assert pytest.approx(held_out, abs=4 * (600 * 0.15 * 0.85) ** 0.5) == 600 * 0.15
