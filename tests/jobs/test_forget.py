"""`forget`: rows go for good, whatever happens meanwhile, and nothing brings them back."""

import json
from pathlib import Path

import made_rows
import openface_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ran_job import Ran

from cluster.lock import StoreLock
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.cli import main
from jobs.extract import Options
from jobs.extraction import Extraction
from jobs.plan import find_videos
from jobs.todo import left_to_do
from mma.descriptors import MMA26
from mma.store.rows import settle_video
from mma.store.tombstones import forgotten
from mma.store.writer import StoreWriter, settle_spec

NETWORK = ("--mma", "random:0:tiny", "--detector", "none")


class Corpus:
    """Clips v0 to v5 that nobody will read, and a store of them in three files; v2 failed, v3 has two chunks."""

    def __init__(self, folder: Path, spec: dict, capfd: pytest.CaptureFixture):
        self.folder, self.capfd = folder, capfd
        self.videos, self.store = folder / "v", folder / "s"
        self.videos.mkdir()
        for number in range(6):
            (self.videos / f"v{number}.mp4").write_bytes(b"x" * 1000)
        settle_spec(Folder(str(self.store)), spec)
        for run, numbers in (("r1", (0, 1, 2)), ("r2", (3, 4)), ("r3", (5,))):
            writer = StoreWriter(Folder(str(self.store)), MMA26, spec, run)
            for number in numbers:
                writer.add(settle_video(self.chunks(number), run))
            writer.commit()

    def chunks(self, number: int) -> pa.Table:
        if number == 3:
            rows = pa.concat_tables([made_rows.row("v3", 0, None), made_rows.row("v3", 1, 2)])
        else:
            rows = made_rows.row(f"v{number}", status="failed" if number == 2 else "ok")
        uris = pa.array([str(self.videos / f"v{number}.mp4")] * rows.num_rows)
        return rows.set_column(rows.schema.get_field_index("uri"), "uri", uris)

    def run(self, *arguments: object) -> Ran:
        code = main([str(each) for each in arguments])
        out, err = self.capfd.readouterr()
        return Ran(code, json.loads(out) if out.strip() else {}, err)

    def ids(self, text: str, name: str = "ids.txt") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def forget(self, text: str, *arguments: str, name: str = "ids.txt") -> Ran:
        return self.run("forget", "--store", self.store, "--videos", self.ids(text, name), *arguments)

    def extract(self, *arguments: str) -> Ran:
        command = ("extract", "--videos", self.videos, "--store", self.store, "--max-failed-fraction", 1)
        return self.run(*command, *NETWORK, *arguments)

    def stored(self) -> list[str]:
        return sorted(
            row for path in self.store.glob("*.parquet") for row in pq.read_table(path)["video_id"].to_pylist()
        )

    def forgotten(self, *ids: str) -> set[str]:
        return forgotten(Folder(str(self.store)), ids)

    def bytes_of_all_files(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.store.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> dict:
    """Of a store that `extract` makes with `NETWORK`."""
    store = tmp_path_factory.mktemp("spec") / "s"
    extraction = Extraction(Options(videos="", store=str(store), mma="random:0:tiny", detector="none"))
    return extraction._settle_spec("float32", has_data=False)


@pytest.fixture
def corpus(tmp_path, spec, capfd) -> Corpus:
    return Corpus(tmp_path, spec, capfd)


def test_rows_are_gone_and_the_others_stay_as_they_were(corpus):
    before = {row["video_id"]: row for row in pq.read_table(corpus.store / "part-r1-00000.parquet").to_pylist()}
    ran = corpus.forget("v0\nv3\nv2\n")
    assert ran.code == 0, ran.told
    assert corpus.stored() == ["v1", "v4", "v5"]
    assert repr(pq.read_table(corpus.store / "part-r1-00000.parquet").to_pylist()) == repr([before["v1"]])
    assert not list(corpus.store.glob("failed-*")), "a file without rows is no file"
    assert pq.read_schema(corpus.store / "part-r1-00000.parquet").metadata, "the spec stays with the file"
    summary = {key: ran.summary[key] for key in ("job", "asked", "videos", "rows_removed", "not_in_store", "dry_run")}
    assert summary == {
        "job": "forget", "asked": 3, "videos": 3, "rows_removed": 4, "not_in_store": 0, "dry_run": False,
    }  # fmt: skip


def test_no_byte_of_the_store_tells_the_ids(corpus):
    assert corpus.forget("v3\n").code == 0
    assert b"v3" not in corpus.bytes_of_all_files()


def test_a_rerun_of_extract_does_not_bring_them_back(corpus):
    assert corpus.forget("v0\nv3\n").code == 0
    ran = corpus.extract()  # nothing is left to do, so no Ray
    assert ran.code == 0, ran.told
    summary = {key: ran.summary[key] for key in ("videos", "skipped", "forgotten", "missing", "units")}
    assert summary == {"videos": 4, "skipped": 4, "forgotten": 2, "missing": 0, "units": 0}
    assert corpus.stored() == ["v1", "v2", "v4", "v5"]
    assert "2 videos were forgotten" in ran.told


@pytest.mark.parametrize("arguments", [(), ("--retry-failed",), ("--redo-changed",)])
def test_no_way_of_asking_plans_them_again(corpus, arguments):
    assert corpus.forget("v2\nv4\n").code == 0
    (corpus.videos / "v4.mp4").write_bytes(b"y" * 1000)
    ran = corpus.extract("--dry-run", *arguments)
    assert (ran.summary["forgotten"], ran.summary["videos"]) == (2, 4)
    redone = 4 if "--redo-changed" in arguments else 0  # the rows were made of other versions of all files
    assert ran.summary["to_do"] == redone


def test_ids_that_the_store_lacks_are_kept_out_all_the_same(corpus):
    ran = corpus.forget("v9\nv1\n")
    assert (ran.summary["asked"], ran.summary["videos"], ran.summary["not_in_store"]) == (2, 1, 1)
    (corpus.videos / "v9.mp4").write_bytes(b"new")
    assert corpus.extract("--dry-run").summary["to_do"] == 0
    assert corpus.forgotten("v9", "v8") == {"v9"}


def test_a_dry_run_says_what_would_go_and_changes_nothing(corpus):
    before = corpus.bytes_of_all_files()
    ran = corpus.forget("v3\nv7\n", "--dry-run")
    assert (ran.code, ran.summary["videos"], ran.summary["rows_removed"], ran.summary["not_in_store"]) == (0, 1, 0, 1)
    assert "holds 1 of them, in 2 rows" in ran.told
    assert corpus.bytes_of_all_files() == before


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_an_end_half_way_leaves_what_a_rerun_completes(corpus, monkeypatch, fails_at):
    honest, data_files = (Folder.write, Folder.delete), []

    def fail_late(self, names: list[str]) -> None:
        data_files.extend(name for name in names if name.endswith(".parquet"))
        if len(data_files) > fails_at:
            raise StorageError("No space left on device", retryable=True)

    def write(self, name, data):
        fail_late(self, [name])
        return honest[0](self, name, data)

    def delete(self, names):
        names = list(names)
        fail_late(self, names)
        honest[1](self, names)

    monkeypatch.setattr(Folder, "write", write)
    monkeypatch.setattr(Folder, "delete", delete)
    ran = corpus.forget("v0\nv3\nv5\n")
    assert (ran.code, ran.summary) == (1, {})
    assert "not all rows are gone: No space left on device" in ran.told
    monkeypatch.undo()
    assert {"v0", "v3", "v5"} & set(corpus.stored()), "some rows are left"
    assert corpus.forgotten("v0", "v3", "v5") == {"v0", "v3", "v5"}, "the tombstone stands before the first row goes"
    assert corpus.extract("--dry-run").summary["forgotten"] == 3
    ran = corpus.forget("v0\nv3\nv5\n")
    assert ran.code == 0, ran.told
    assert corpus.stored() == ["v1", "v2", "v4"]
    assert len(list((corpus.store / "_forgotten").iterdir())) == 1, "who is noted already is not noted again"


def test_what_a_killed_writer_left_goes_too(corpus):
    (corpus.store / "_tmp-part-r9").write_bytes(b"rows of v3")
    assert corpus.forget("v3\n").code == 0
    assert not list(corpus.store.glob("_tmp-*"))


def test_the_record_of_a_run_over_one_video_no_longer_names_it(corpus):
    runs = corpus.store / "_runs"
    runs.mkdir()
    for name, videos in (("one", "s3://b/people/v3.mp4"), ("all", "s3://b/people")):
        (runs / f"{name}.json").write_text(json.dumps({"options": {"videos": videos}, "summary": None}))
    assert corpus.forget("v3\n").code == 0
    assert json.loads((runs / "one.json").read_text())["options"]["videos"] == "forgotten"
    assert json.loads((runs / "all.json").read_text())["options"]["videos"] == "s3://b/people"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.txt", "\ufeff v0 \r\n\r\nv4\n"),
        ("ids", "[v0]\n[v4]\n"),
        ("ids.csv", "Country,File_ID\nUS,[v0]\nZA,[v4]\n"),
        ("ids.CSV", '"video_id","uri"\n"v0","a"\n"v4","b"\n'),
        ("ids.lst", "video_id,uri\nv0,a\nv4,b\n"),
    ],
)
def test_ids_come_as_tables_and_as_text(corpus, name, text):
    assert corpus.forget(text, name=name).summary["videos"] == 2
    assert corpus.stored() == ["v1", "v2", "v3", "v3", "v5"]


def test_ids_come_as_parquet_whose_blanks_are_nobody(corpus):
    for name in ("ids.parquet", "ids"):
        pq.write_table(pa.table({"video_id": ["v0", None, "v4"]}), corpus.folder / name)
        ran = corpus.run("forget", "--store", corpus.store, "--videos", corpus.folder / name, "--dry-run")
        assert (ran.summary["asked"], ran.summary["videos"]) == (2, 2)


def test_ids_keep_their_zeros_and_words_like_na_are_ids(corpus):
    assert corpus.forget("video_id\n00000\nNA\n", name="ids.csv").summary["asked"] == 2
    assert corpus.forgotten("00000", "0", "NA", "nan") == {"00000", "NA"}


def test_a_store_whose_files_had_brackets_is_served_too(corpus):
    writer = StoreWriter(Folder(str(corpus.store)), MMA26, {}, "r4")
    writer.add(settle_video(made_rows.row("[v8]"), "r4"))
    writer.commit()
    ran = corpus.forget("video_id\n[v8]\n", name="ids.csv")
    assert (ran.summary["videos"], ran.summary["not_in_store"]) == (1, 0)
    assert "[v8]" not in corpus.stored()
    assert corpus.forgotten("[v8]") == {"[v8]"}


WRONG = {
    "no column of ids": ("ids.csv", "name,age\nv0,30\n"),
    "names no video": ("ids.txt", "\n \n"),
    "ids.parquet is empty": ("ids.parquet", ""),
    "neither a csv table": ("ids.csv", 'video_id\n"v0\n'),
}


@pytest.mark.parametrize(("told", "file"), WRONG.items())
def test_wrong_ids_are_one_line_and_exit_code_2(corpus, told, file):
    ran = corpus.forget(file[1], name=file[0])
    assert (ran.code, ran.summary) == (2, {})
    assert told in ran.told
    assert "--videos" in ran.told
    assert len(ran.told.strip().splitlines()) == 1
    assert len(corpus.stored()) == 7


def test_a_file_of_bytes_is_no_list_of_ids(corpus):
    (corpus.folder / "ids").write_bytes(b"\xff\xfe\x00\x01")
    ran = corpus.run("forget", "--store", corpus.store, "--videos", corpus.folder / "ids")
    assert (ran.code, "neither a table nor a text file" in ran.told) == (2, True)


def test_what_is_no_store_or_is_not_there_is_refused(corpus):
    ran = corpus.run("forget", "--store", corpus.videos, "--videos", corpus.ids("v0"))
    assert (ran.code, "--store" in ran.told) == (2, True)
    assert corpus.run("forget", "--store", corpus.store, "--videos", corpus.folder / "none.txt").code == 2


def test_a_live_run_is_left_alone_and_named(corpus):
    with StoreLock(Folder(str(corpus.store)), "run r7 on this host"):
        ran = corpus.forget("v0\n")
    assert ran.code == 2
    assert "run r7 on this host" in ran.told
    assert "v0" in corpus.stored()
    assert corpus.forgotten("v0") == set()


def test_a_tombstone_that_cannot_be_read_stops_extract(corpus):
    assert corpus.forget("v0\n").code == 0
    (tombstone,) = (corpus.store / "_forgotten").iterdir()
    tombstone.write_text("{")
    ran = corpus.extract("--dry-run")
    assert (ran.code, "_forgotten" in ran.told) == (2, True)


def test_readers_of_the_store_see_no_tombstone(corpus):
    assert corpus.forget("v0\n").code == 0
    assert sorted(pq.read_table(corpus.store)["video_id"].to_pylist()) == corpus.stored()


def test_the_plan_of_a_run_lacks_who_was_forgotten(corpus):
    assert corpus.forget("v0\nv9\n").code == 0
    plan = find_videos(str(corpus.videos)).videos
    todo = left_to_do(Folder(str(corpus.store)), plan, retry_failed=False, redo_changed=False)
    assert todo.forgotten == 1
    assert todo.planned["video_id"].to_pylist() == ["v1", "v2", "v3", "v4", "v5"]
    assert todo.videos.num_rows == 0


def test_import_openface_does_not_bring_them_back_either(corpus):
    store, csvs = corpus.folder / "openface", corpus.folder / "csvs"
    for number in range(3):
        openface_files.write(csvs / f"v{number}.csv")
    command = ("import-openface", "--csvs", csvs, "--store", store)
    assert corpus.run(*command).summary["ok"] == 3
    assert corpus.run("forget", "--store", store, "--videos", corpus.ids("v1\n")).summary["videos"] == 1
    openface_files.write(csvs / "v3.csv")
    ran = corpus.run(*command)
    assert (ran.code, ran.summary["ok"], ran.summary["forgotten"], ran.summary["missing"]) == (0, 1, 1, 0)
    assert sorted(pq.read_table(store)["video_id"].to_pylist()) == ["v0", "v2", "v3"]


def test_the_cluster_is_not_given_who_was_forgotten(job, opened, clips, tmp_path):
    store = tmp_path / "s"
    command = ("extract", "--videos", clips, "--store", store, *NETWORK)
    assert job(*command, "--limit", 1).summary["ok"] == 1
    (tmp_path / "ids.txt").write_text("00\n01\n")
    assert job("forget", "--store", store, "--videos", tmp_path / "ids.txt").summary["rows_removed"] == 1
    before = opened("00.mp4"), opened("01.mp4")
    ran = job(*command, "--limit", 3)
    assert (ran.code, ran.summary["ok"], ran.summary["forgotten"], ran.summary["missing"]) == (0, 1, 2, 0)
    assert pq.read_table(store)["video_id"].to_pylist() == ["02"]
    assert (opened("00.mp4"), opened("01.mp4")) == before
