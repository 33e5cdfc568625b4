import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from cluster import localdisk
from cluster.storage import Folder, StorageError, check_name, display, fetch, parse_uri, read, stat

ODD_NAMES = ["a b.mp4", "ünï 表.mp4", "two\nlines.mp4", "h#a?b%20c&.mp4", "-dash.mp4", "'quote\".mp4", "n" * 255]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_written_listed_and_read_back(tmp_path, name):
    folder = Folder(str(tmp_path))
    folder.write(name, b"content")
    assert [f.name for f in folder.list()] == [name]
    assert [f.name for f in folder.walk()] == [name]
    assert folder.read(name) == b"content"
    assert stat(folder.uri_of(name)).bytes == 7
    assert folder.exists(name)
    folder.delete([name, "never there"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..", ".", "", "a//b", "a\\..\\x", "x\0", "x" * 256])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder = Folder(str(tmp_path / "store"))
    for use in (folder.read, folder.exists, folder.child, lambda n: folder.write(n, b""), lambda n: folder.delete([n])):
        with pytest.raises(ValueError, match=r"."):
            use(name)
    with pytest.raises(ValueError):
        check_name(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["http://h/x", "https://u:pw@h/x", "zip://a::s3://b/c", "ftp://x", "s3a://b/k", "", "a\0b", "file://rel/x"]
)
def test_other_schemes_are_refused_in_one_line(uri):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        parse_uri(uri)
    assert "pw" not in str(refused.value)


def test_local_paths_become_absolute_and_file_uris_are_decoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_uri("a/b").path == str(tmp_path / "a/b")
    assert parse_uri("file:///x/a%20b%23%25.mp4").path == "/x/a b#%.mp4"
    assert parse_uri("file://localhost/x").path == "/x"
    assert parse_uri("concat:a|b").path == str(tmp_path / "concat:a|b")
    assert Folder("a/").uri == Folder("file://" + str(tmp_path) + "/a").uri == str(tmp_path / "a")


def test_s3_uris_keep_their_keys_as_they_are():
    place = parse_uri("s3://bucket/a/b c?versionId=3#x%20/")
    assert (place.bucket, place.path) == ("bucket", "a/b c?versionId=3#x%20/")
    assert parse_uri(str(place)) == place
    assert parse_uri("s3://arn:aws:s3:us-west-2:1:accesspoint/ap/k/l").path == "k/l"
    assert Folder("s3://bucket/").uri == "s3://bucket"
    assert Folder("s3://bucket/a/").child("b").uri == "s3://bucket/a/b"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:se/cr@et@bucket/k", "s3://***@bucket/k"),
        ("https://user:pw@host/x?X-Amz-Signature=abc&b=1", "https://***@host/x?***"),
        ("s3://bucket/k?AWSAccessKeyId=A&Expires=1", "s3://bucket/k?***"),
        ("s3://bucket/k?versionId=1", "s3://bucket/k?versionId=1"),
        ("/a/b?key=value@x", "/a/b?key=value@x"),
        ("/a\nb\x1b[1m", "/a\\nb\\x1b[1m"),
        ("/caf\udce9", "/caf\\udce9"),
    ],
)
def test_a_shown_uri_holds_no_secret_and_no_second_line(uri, shown):
    assert display(uri) == shown


def test_credentials_in_an_s3_uri_are_refused_and_not_shown():
    with pytest.raises(ValueError, match="credentials belong in the environment") as refused:
        Folder("s3://AKIA:secret@bucket/x")
    assert "secret" not in str(refused.value)


def test_a_file_name_that_is_not_utf8_gets_a_uri_that_is(tmp_path):
    raw = os.fsencode(str(tmp_path)) + b"/caf\xe9.mp4"
    with open(raw, "wb") as file:
        file.write(b"x")
    folder = Folder(str(tmp_path))
    [found] = folder.walk()
    uri = folder.uri_of(found.name)
    assert uri.encode("utf-8").endswith(b"caf%E9.mp4")
    assert stat(uri).bytes == 1


def test_walk_skips_hidden_files_follows_links_once_and_loses_no_dead_link(tmp_path):
    for name in ["b/2.mp4", "a/1.mp4", ".hidden.mp4", ".git/x.mp4", "a/.DS_Store", "top.mp4"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "dead.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "itself.mp4").symlink_to(tmp_path / "itself.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "top.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    found = {f.name: f.bytes for f in Folder(str(tmp_path)).walk()}
    assert found == {"top.mp4": 2, "link.mp4": 2, "dead.mp4": -1, "itself.mp4": -1, "a/1.mp4": 2, "b/2.mp4": 2}


def test_a_missing_folder_lists_as_empty_but_is_no_corpus(tmp_path):
    folder = Folder(str(tmp_path / "none"))
    assert folder.list() == []
    assert not folder.exists("x")
    with pytest.raises(StorageError, match="No such file") as error:
        list(folder.walk())
    assert error.value.missing
    with pytest.raises(StorageError) as error:
        folder.read("x")
    assert error.value.missing
    assert not error.value.retryable


def test_list_filters_by_prefix_and_suffix_and_shows_no_folders(tmp_path):
    folder = Folder(str(tmp_path))
    for name in ["part-2.parquet", "part-1.parquet", "_spec.json", "failed-1.parquet", "_runs/x.parquet"]:
        folder.write(name, b"")
    assert [f.name for f in folder.list("part-", ".parquet")] == ["part-1.parquet", "part-2.parquet"]
    assert len(folder.list()) == 4


def test_version_changes_with_the_content(tmp_path):
    folder = Folder(str(tmp_path))
    first = folder.write("a", b"1")
    assert folder.read_versioned("a") == (b"1", first)
    os.utime(tmp_path / "a", ns=(1, 1))
    assert folder.list()[0].version == stat(folder.uri_of("a")).version == "1" != first


def test_only_regular_files_are_fetched_and_local_ones_not_copied(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    assert fetch(str(tmp_path / "a"), tmp_path / "copy") == tmp_path / "a"
    assert not (tmp_path / "copy").exists()
    for name in ("pipe", "."):
        with pytest.raises(StorageError):
            fetch(str(tmp_path / name), "")


_KILLED_IN_WRITE = """
import os, signal, sys
from cluster import localdisk
from cluster.storage import Folder
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
target = os if sys.argv[2] in ("fsync", "replace", "link") else localdisk
setattr(target, sys.argv[2], die)
write = Folder(sys.argv[1]).write_new if sys.argv[2] == "link" else Folder(sys.argv[1]).write
write("part.parquet", b"new" * 1000)
"""


@pytest.mark.parametrize("instant", ["fsync", "replace", "link", "_sync_folder"])
def test_a_write_killed_at_any_instant_shows_no_half_file_and_its_rest_is_swept(tmp_path, instant):
    folder = Folder(str(tmp_path))
    if instant != "link":
        folder.write("part.parquet", b"old")
    killed = subprocess.run([sys.executable, "-c", _KILLED_IN_WRITE, str(tmp_path), instant], check=False)
    assert killed.returncode == -signal.SIGKILL
    if instant == "link":
        assert not folder.exists("part.parquet")
    else:
        assert folder.read("part.parquet") == (b"new" * 1000 if instant == "_sync_folder" else b"old")
    left = 0 if instant == "_sync_folder" else 1
    assert len(folder.list(prefix="_tmp-")) == left
    assert folder.sweep_temporaries(older_than_s=3600) == 0
    assert folder.sweep_temporaries(older_than_s=0) == left
    assert [f.name for f in folder.list()] == ([] if instant == "link" else ["part.parquet"])


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(localdisk.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as error:
        Folder(str(tmp_path)).write("a", b"1")
    assert error.value.retryable
    assert os.listdir(tmp_path) == []


_RACER = """
import sys
from cluster.storage import Folder
folder = Folder(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[2])):
    try:
        folder.write_new(f"n{i}", sys.argv[3].encode() * 1000)
        print(i)
    except FileExistsError:
        pass
"""


def test_of_two_processes_that_write_new_exactly_one_wins_each_name(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(tmp_path), "50", letter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for letter in "ab"
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [set(racer.communicate(timeout=30)[0].split()) for racer in racers]
    assert not won[0] & won[1]
    assert won[0] | won[1] == {str(i) for i in range(50)}
    folder = Folder(str(tmp_path))
    for letter, names in zip("ab", won):
        assert all(folder.read(f"n{i}") == letter.encode() * 1000 for i in names)
    assert folder.list(prefix="_tmp-") == []


def test_write_new_works_where_hard_links_do_not(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(localdisk.os, "link", refuse)
    folder = Folder(str(tmp_path))
    folder.write_new("a", b"1")
    with pytest.raises(FileExistsError):
        folder.write_new("a", b"2")
    assert folder.read("a") == b"1"
    assert os.listdir(tmp_path) == ["a"]


def test_check_writable_says_why_not(tmp_path):
    Folder(str(tmp_path / "new")).check_writable()
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write to .*Not a directory"):
        Folder(str(tmp_path / "file")).check_writable()


def test_folders_and_errors_travel_between_processes(tmp_path):
    folder = pickle.loads(pickle.dumps(Folder(str(tmp_path))))
    assert folder.uri == str(tmp_path)
    error = pickle.loads(pickle.dumps(StorageError("two\nlines", retryable=True)))
    assert (str(error), error.retryable, error.missing) == ("two lines", True, False)


def test_pyarrow_reads_the_folder(tmp_path):
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    folder = Folder(str(tmp_path))
    folder.write("part-1.parquet", sink.getvalue().to_pybytes())
    folder.write("_tmp-part-2.parquet", b"half")
    filesystem, root = folder.filesystem()
    assert ds.dataset(root, filesystem=filesystem).to_table().to_pydict() == {"x": [1]}


def test_importing_storage_brings_neither_ray_nor_torch():
    code = (
        "import sys, cluster.storage, cluster.lock, cluster.scratch; "
        "print([m for m in ('ray', 'torch', 'mma') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_threads_write_the_same_name_whole(tmp_path):
    folder = Folder(str(tmp_path))
    threads = [threading.Thread(target=folder.write, args=("a", bytes([i]) * 100_000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folder.read("a"))) == 1
    assert folder.list()[0].bytes == 100_000


def test_a_local_file_is_put_whole_over_what_was_there(tmp_path):
    folder = Folder(str(tmp_path / "out"))
    (tmp_path / "table.csv").write_bytes(b"new")
    folder.write("out.csv", b"older")
    folder.put_file("out.csv", tmp_path / "table.csv")
    assert read(folder.uri_of("out.csv")) == b"new"
    with pytest.raises(StorageError, match="No such file"):
        folder.put_file("none.csv", tmp_path / "gone.csv")
    assert [f.name for f in folder.list()] == ["out.csv"]
