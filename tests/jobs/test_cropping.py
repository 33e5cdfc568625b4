"""`ensure_crops`: the very crops of `extract`, made once, counted by set, and made again only where that is due."""

import os
from dataclasses import replace
from functools import partial

import drawn_faces
import numpy as np
import odd_videos
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_faces import empty_picture, face_picture, labels, save

from cluster.lock import StoreLock
from cluster.session import Stop, ray_session
from cluster.storage import Folder
from jobs import crop_sources, crop_tasks
from jobs.crop_intake import CropIntake
from jobs.crop_sources import source_versions
from jobs.cropping import CropReport, SetCrops, _Cropping, ensure_crops
from jobs.outcome import InputError, JobFailedError
from jobs.pipeline import Reading
from jobs.progress import RunProgress
from mma.crops import crop_spec, flat_faces, found, outcomes, rows, store
from mma.faces import FaceOptions, align, square_crop
from mma.labels.table import CUT, GIVEN
from mma.video.options import DecodeOptions
from mma.video.slot import DecodeSlot

HAAR, WHOLE = FaceOptions(), FaceOptions(detector="none")
SETTINGS = Reading(decode=DecodeOptions(faces=WHOLE))
POINTS = [38.3, 51.7, 73.5, 51.5, 56.0, 71.7, 41.5, 92.4, 70.7, 92.2]


def counts(**given: int) -> SetCrops:
    names = ("cut", "given", "by_points", "by_box", "no_face", "failed", "missing")
    return SetCrops(rows=sum(given.values()), **{name: given.get(name, 0) for name in names})


def no_session():
    raise AssertionError("Ray was started")


def frames_of(path, frames, crop=CUT) -> pa.Table:
    return labels(*((str(path), frame, crop) for frame in frames))


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(str(tmp_path / "crops"))


@pytest.fixture
def crops(ray_cluster, folder):
    """`ensure_crops` into this test's folder, on the session's cluster."""

    def run(faces: FaceOptions = WHOLE, **tables: pa.Table) -> CropReport:
        return ensure_crops(tables, folder, faces, session=partial(ray_session, None))

    return run


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """24 frames, a drawn face on all but 8 to 15."""

    def picture(number, *_):
        return empty_picture() if 8 <= number < 16 else face_picture(0, number)

    height, width = face_picture().shape[:2]
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return odd_videos.write_clip(path, frames=24, size_px=(width, height), picture=picture)


def test_the_pixels_are_those_that_extract_sees(crops, folder, film, tmp_path):
    wanted = frames_of(film, [20, 3, 0, 12, 23, 9, 4])
    report = crops(HAAR, set=wanted)
    with DecodeSlot(DecodeOptions(faces=HAAR)) as slot:
        (chunk,) = slot.chunks(film)
    faces = dict(zip(np.flatnonzero(chunk.face_found).tolist(), chunk.faces))
    assert report.sets == {"set": counts(cut=5, no_face=2)}
    assert (report.made, report.repeated) == (7, 0)
    shown = found(folder, wanted)
    assert shown.tolist() == [frame in faces for frame in wanted["frame"].to_pylist()]
    kept = wanted.filter(pa.array(shown))
    for got, frame in zip(flat_faces(folder, kept, tmp_path / "scratch"), kept["frame"].to_pylist(), strict=True):
        np.testing.assert_array_equal(got, faces[frame])


def test_images_are_cut_by_the_detector_or_by_what_the_set_knows(crops, folder, tmp_path):
    box, uris = [20.0, 10.0, 60.0, 80.0], {}
    for name in ("face.png", "points.png", "box.png", "empty.png", "hole.png"):
        uris[name] = save(tmp_path / "i" / name, face_picture() if name == "face.png" else empty_picture())
    uris["crop.png"] = save(tmp_path / "i" / "crop.png", face_picture()[100:212, 100:212])
    data = (tmp_path / "i" / "hole.png").read_bytes()
    (tmp_path / "i" / "hole.png").write_bytes(data[: len(data) // 2])
    one = labels(
        (uris["face.png"], None), (uris["points.png"], None, CUT, box, POINTS), (uris["box.png"], None, CUT, box),
        (uris["empty.png"], None), (uris["hole.png"], None), (str(tmp_path / "i" / "gone.png"), None),
        ("ftp://host/x.png", None),
    )  # fmt: skip
    two = labels((uris["crop.png"], None, GIVEN), (uris["face.png"], None))
    report = crops(HAAR, one=one, two=two)
    assert report.sets == {
        "one": counts(cut=1, by_points=1, by_box=1, no_face=1, failed=3),
        "two": counts(given=1, cut=1),
    }
    assert report.made == 8
    assert report.summary()["sets"]["one"]["by_points"] == 1
    causes = {row["source"].rpartition("/")[2]: row["error_type"] for row in pq.read_table(folder.uri).to_pylist()}
    assert (causes["hole.png"], causes["gone.png"], causes["x.png"]) == ("DamagedImage", "Missing", "Refused")
    kept = pa.concat_tables([one, two]).filter(pa.array(found(folder, pa.concat_tables([one, two]))))
    faces = flat_faces(folder, kept, tmp_path / "scratch")
    np.testing.assert_array_equal(faces[1], align(empty_picture(), np.reshape(POINTS, (5, 2))))
    np.testing.assert_array_equal(faces[2], square_crop(empty_picture(), box))
    np.testing.assert_array_equal(faces[3], face_picture()[100:212, 100:212])
    np.testing.assert_array_equal(faces[4], faces[0])


def test_what_the_store_has_is_not_done_again_and_does_not_start_ray(crops, folder, clips, opened, capfd):
    first, both = frames_of(clips / "02.mp4", [0, 1, 2]), frames_of(clips / "02.mp4", [0, 1, 2, 5])
    other = frames_of(clips / "03.mp4", [12, 11])
    before = {name: opened(name) for name in ("02.mp4", "03.mp4")}
    crops(a=first)
    # What a killed run leaves: the store has one video and lacks the other.
    report = crops(a=first, b=other)
    assert (report.made, report.sets) == (2, {"a": counts(cut=3), "b": counts(cut=2)})
    assert {name: opened(name) - count for name, count in before.items()} == {"02.mp4": 1, "03.mp4": 1}
    with StoreLock(folder, "a training that cuts"):  # a store that has everything may be read meanwhile
        again = ensure_crops({"a": first, "b": other}, folder, WHOLE, session=no_session)
    assert (again.made, again.sets) == (0, report.sets)
    assert "crops of b: 2 rows, 2 cut" in capfd.readouterr().err
    assert crops(a=both).made == 1
    table = pq.read_table(folder.uri)
    assert table.num_rows == len(set(zip(table["source"].to_pylist(), table["frame"].to_pylist()))) == 6


def test_a_changed_source_is_cut_again_and_one_that_is_gone_keeps_its_crops(crops, folder, tmp_path):
    kept, changed = (save(tmp_path / "i" / f"{number}.png", face_picture()) for number in range(2))
    wanted = labels((kept, None), (changed, None))
    crops(set=wanted)
    save(tmp_path / "i" / "1.png", face_picture(3))
    os.unlink(kept)
    report = crops(set=wanted)
    assert (report.made, report.sets["set"]) == (1, counts(cut=2))
    assert pq.read_table(folder.uri).num_rows == 2
    height, width = face_picture(3).shape[:2]
    side = min(height, width)
    expected = square_crop(face_picture(3), [(width - side) / 2, (height - side) / 2, side, side], box_scale=1)
    np.testing.assert_array_equal(flat_faces(folder, wanted, tmp_path / "scratch")[1], expected)


def test_failed_rows_are_tried_again_only_when_asked(ray_cluster, folder, tmp_path):
    wanted = labels((str(tmp_path / "i" / "late.png"), None))
    (tmp_path / "i").mkdir()
    run = partial(ensure_crops, {"set": wanted}, folder, WHOLE, session=partial(ray_session, None))
    (tmp_path / "i" / "late.png").write_bytes(b"<html>")
    assert run().sets["set"] == counts(failed=1)
    assert run().made == 0
    assert run(retry_failed=True).made == 1
    assert pq.read_table(folder.uri).num_rows == 1


def test_other_settings_are_refused_with_the_field_named(crops, folder, clips):
    wanted = frames_of(clips / "00.mp4", [0])
    crops(set=wanted)
    with pytest.raises(InputError, match=r"--crops.*faces\.detect_every: 2 / 1"):
        ensure_crops({"set": wanted}, folder, replace(WHOLE, detect_every=2), session=no_session)


def test_a_bad_video_costs_its_own_rows_and_a_lost_worker_none(crops, folder, clips, tmp_path, opened):
    for name in ("cut_segfault", "cut_worker-killer"):
        odd_videos.write_clip(tmp_path / f"{name}.mp4", frames=40)
    odd_videos.truncate(odd_videos.write_clip(tmp_path / "whole.mp4", frames=40), tmp_path / "part.mp4")
    tables = {
        "crashing": frames_of(tmp_path / "cut_segfault.mp4", range(3)),
        "killing": frames_of(tmp_path / "cut_worker-killer.mp4", range(0, 40, 3)),
        "short": frames_of(clips / "00.mp4", [0, 9, 10, 500]),
        "damaged": frames_of(tmp_path / "part.mp4", [0, 1, 39]),
        "given": frames_of(clips / "01.mp4", [2, 5], GIVEN),
    }
    report = crops(**tables)
    assert report.sets == {
        "crashing": counts(failed=3),
        "killing": counts(cut=14),
        "short": counts(cut=2, failed=2),
        "damaged": counts(cut=2, failed=1),
        "given": counts(given=2),
    }
    assert opened("cut_segfault.mp4") == 1
    assert opened("cut_worker-killer.mp4") >= 2
    causes = {
        (row["source"].rpartition("/")[2], row["frame"]): row["error_type"]
        for row in pq.read_table(folder.uri).to_pylist()
    }
    assert causes["cut_segfault.mp4", 1] == "DecoderCrashed"
    assert causes["00.mp4", 500] == "NoSuchFrame"
    assert causes["part.mp4", 39] == "DamagedStream"


def test_from_s3_to_s3(ray_cluster, clips, tmp_path, s3_bucket, opened):
    source, kept = Folder(f"s3://{s3_bucket}/set"), Folder(f"s3://{s3_bucket}/crops")
    source.write("a/face 1%.png", drawn_faces.encoded(face_picture()))
    source.write("b.mp4", (clips / "04.mp4").read_bytes())
    image, video = source.uri_of("a/face 1%.png"), source.uri_of("b.mp4")
    wanted = labels((video, 13), (image, None), (video, 0), (source.uri_of("a/none.png"), None))
    report = ensure_crops({"set": wanted}, kept, WHOLE, session=partial(ray_session, None))
    assert report.sets == {"set": counts(cut=3, failed=1)}
    assert ensure_crops({"set": wanted}, kept, WHOLE, session=no_session).made == 0
    faces = flat_faces(kept, wanted.slice(0, 3), tmp_path / "scratch")
    with DecodeSlot(DecodeOptions(faces=WHOLE)) as slot:
        (chunk,) = slot.chunks(clips / "04.mp4")
    np.testing.assert_array_equal(faces[[0, 2]], chunk.faces[[13, 0]])


# --- without Ray ---


class Built:
    """A pipeline that does its tasks in this process, less what a test takes away."""

    def __init__(self, sources: pa.Table, change=lambda table: [table]):
        self.sources, self.change = sources, change

    def iter_batches(self, **_):
        for table in crop_tasks.cut_crops(self.sources, reading=SETTINGS):
            yield from self.change(table)


@pytest.fixture
def cropping(tmp_path, folder):
    """A run over 30 given images, under the store's lock."""
    (tmp_path / "i").mkdir()
    uris = [
        save(tmp_path / "i" / f"{number:02d}.png", face_picture()[number : number + 112, :112]) for number in range(30)
    ]
    run = _Cropping(
        {"set": labels(*((uri, None, GIVEN) for uri in uris))}, folder, crop_spec(WHOLE.spec()), retry_failed=False
    )
    with StoreLock(folder, "test") as run.lock:
        yield run


def test_rows_that_come_twice_are_dropped(cropping, folder):
    cropping.cut(lambda sources: Built(sources, lambda table: [table, table, pa.concat_tables([table] * 2)]), Stop())
    report = cropping.report(1.0)
    assert (report.made, report.repeated) == (30, 90)
    assert report.sets["set"] == counts(given=30)
    assert pq.read_table(folder.uri).num_rows == 30


def test_rows_that_do_not_arrive_are_planned_again_at_most_twice(cropping, folder):
    planned = []

    def build(sources):
        planned.append(sources.num_rows)
        return Built(sources, lambda table: [table.slice(0, 1)])

    with pytest.raises(JobFailedError, match="did not arrive in 3 tries"):
        cropping.cut(build, Stop())  # of each eight rows one arrives
    assert planned == [30, 26, 22]
    assert pq.read_table(folder.uri).num_rows == 11


def test_storage_that_fails_leaves_no_row_and_ends_the_run_when_that_is_the_rule(cropping, folder, monkeypatch):
    from cluster.uri import StorageError

    def read(uri):
        raise StorageError("SlowDown", retryable=True)

    monkeypatch.setattr(crop_tasks, "read", read)
    given_up = crop_tasks.cut_crops(crop_sources.plan_sources(*_plan(cropping)), reading=SETTINGS)
    assert sum(table.num_rows for table in given_up) == 8  # the rest of the block is left to the next round
    monkeypatch.setattr(crop_tasks, "GIVE_UP", 100)
    with pytest.raises(JobFailedError, match=r"20 of the last 20 .* SlowDown"):
        cropping.cut(Built, Stop())
    assert not folder.list(suffix=".parquet")


def _plan(run: _Cropping) -> tuple:
    return run.rows, run.keys, run.outcome == rows.NO_ROW, run.versions, run.bytes


def test_an_error_of_the_pipeline_keeps_what_arrived(cropping, folder, capfd):
    def change(table):
        if table["key"][0].as_py() >= 16:
            raise RuntimeError("a defect")
        return [table]

    with pytest.raises(JobFailedError, match="RuntimeError: a defect"):
        cropping.cut(lambda sources: Built(sources, change), Stop())
    capfd.readouterr()
    assert pq.read_table(folder.uri).num_rows == 16


def test_a_signal_commits_what_arrived_and_reports_the_rest(cropping, folder):
    stop = Stop()

    def change(table):
        if table["key"][0].as_py() >= 16:
            stop.signal = 15
        return [table]

    cropping.cut(lambda sources: Built(sources, change), stop)
    left = cropping.report(1.0).sets["set"]
    assert left.missing >= 6
    assert pq.read_table(folder.uri).num_rows == left.given == 30 - left.missing


def test_a_lost_lock_writes_nothing(cropping, folder):
    class Lost:
        lost, trouble = True, ""

    writer = store.CropWriter(folder, {}, "x")
    intake = CropIntake(folder, Lost(), writer, cropping.outcome, RunProgress(30), Stop())
    with pytest.raises(JobFailedError, match="taken over"):
        intake.take(Built(crop_sources.plan_sources(*_plan(cropping))).iter_batches())
    with pytest.raises(JobFailedError, match="taken over"):
        intake.commit()
    assert not folder.list(suffix=".parquet")


def test_versions_come_from_one_listing_a_folder(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/2.png", "b/a/1.png", "b/ü %41.png"):
        save(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    listed, asked = [], []
    listing, stat = crop_sources._listing, crop_sources.stat
    monkeypatch.setattr(crop_sources, "_listing", lambda uri: (listed.append(uri), listing(uri))[1])
    monkeypatch.setattr(crop_sources, "stat", lambda uri: (asked.append(uri), stat(uri))[1])
    encoded = f"file://{tmp_path}/b/%C3%BC%20%2541.png"
    uris = [
        f"{tmp_path}/{name}" for name in ("a/2.png", "b/a/1.png", "a/none.png", "a/1.png", "b/ü %41.png", "c/x.png")
    ]
    uris += ["ftp://x/y.png", "", encoded]
    versions, sizes = source_versions(pa.array(uris))
    path = {0: "a/2.png", 1: "b/a/1.png", 3: "a/1.png", 4: "b/ü %41.png", 8: "b/ü %41.png"}
    expected = [str((tmp_path / path[i]).stat().st_mtime_ns) if i in path else None for i in range(len(uris))]
    assert versions.to_pylist() == expected
    assert [size is not None for size in sizes.to_pylist()] == [version is not None for version in expected]
    assert len(listed) == len(set(listed)) == 6
    assert set(asked) == {"ftp://x/y.png", "", encoded}


def test_labels_without_rows_need_nothing(folder):
    report = ensure_crops({"none": labels()}, folder, WHOLE, session=no_session)
    assert report.sets == {"none": counts()}
    assert ensure_crops({}, folder, WHOLE, session=no_session).sets == {}
    assert not os.path.exists(folder.uri)


def test_outcomes_of_a_report_are_those_of_the_store(cropping, folder):
    cropping.cut(Built, Stop())
    np.testing.assert_array_equal(cropping.outcome[cropping.keys.inverse], outcomes(folder, cropping.rows))
