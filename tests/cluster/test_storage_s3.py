import os
import pickle
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from s3_server import CREDENTIALS, faulty_proxy, make_bucket, shared_moto

from cluster import s3
from cluster.storage import Folder, StorageError, fetch, read, stat


@pytest.fixture(scope="module")
def endpoint():
    return shared_moto()


@pytest.fixture
def folder(endpoint, monkeypatch):
    for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "3"}.items():
        monkeypatch.setenv(key, value)
    return Folder(f"s3://{make_bucket(endpoint)}/a store")


# moto itself answers 404 to a key with a newline (its routes do not match one), so that one is tried on disks alone.
@pytest.mark.parametrize("name", ["a b.mp4", "ünï 表.mp4", "h#a?b%20c&+.mp4", "x?versionId=3", "-d'\"<.mp4", "n" * 255])
def test_odd_names_are_written_listed_and_read_back(folder, tmp_path, name):
    version = folder.write(name, b"content")
    assert [(f.name, f.bytes, f.version) for f in folder.list()] == [(name, 7, version)]
    assert [f.name for f in folder.walk()] == [name]
    assert folder.read_versioned(name) == (b"content", version)
    assert stat(folder.uri_of(name)).version == version
    assert fetch(folder.uri_of(name), tmp_path / "x").read_bytes() == b"content"
    folder.delete([name, "never there"])
    assert folder.list() == []
    assert not folder.exists(name)


def test_names_that_leave_the_folder_are_refused(folder):
    for name in ["../x", "/x", "a//b", ".."]:
        with pytest.raises(ValueError, match="no name inside a folder"):
            folder.write(name, b"")


def test_list_is_flat_and_fresh_and_walk_is_deep_without_hidden_files(folder):
    for name in ["part-1.parquet", "part-2.tmp", "_runs/1.json", ".hidden", "sub/.git/x", "sub/b.mp4"]:
        folder.write(name, b"1")
    assert [f.name for f in folder.list("part-", ".parquet")] == ["part-1.parquet"]
    folder.write("part-0.parquet", b"1")  # a listing cache would hide it
    assert [f.name for f in folder.list("part-", ".parquet")] == ["part-0.parquet", "part-1.parquet"]
    assert {f.name for f in folder.walk()} == {
        "part-0.parquet",
        "part-1.parquet",
        "part-2.tmp",
        "_runs/1.json",
        "sub/b.mp4",
    }
    assert Folder(folder.uri[:-2]).list() == []  # "a sto" is no folder, though keys begin so


def test_a_listing_of_many_pages_is_whole(folder, monkeypatch):
    monkeypatch.setattr(s3, "PAGE_KEYS", 4)
    names = [f"{i:02}" for i in range(10)]
    for name in names:
        folder.write(name, b"")
        folder.write(f"sub/{name}", b"")
    assert [f.name for f in folder.list()] == names
    assert [f.name for f in folder.walk()] == [*names, *(f"sub/{name}" for name in names)]


def test_conditional_puts_hold(folder):
    first = folder.write_new("x", b"1")
    with pytest.raises(FileExistsError, match=r"a store/x exists"):
        folder.write_new("x", b"2")
    second = folder.replace_if("x", b"3", first)
    assert second not in (None, first)
    assert folder.replace_if("x", b"4", first) is None
    assert folder.replace_if("not there", b"4", first) is None
    assert folder.read("x") == b"3"


def test_a_conditional_put_whose_answer_was_lost_is_known_as_won(folder, endpoint, monkeypatch):
    lose_one = {"kinds": ("lost",), "max_faults": 1, "only": lambda method, _: method == "PUT"}
    with faulty_proxy(endpoint, **lose_one) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        version = folder.write_new("x", b"mine")
        assert proxy.faults == ["lost"]
        proxy.faults.clear()
        version = folder.replace_if("x", b"mine too", version)
        assert version == folder.read_versioned("x")[1]
        with pytest.raises(FileExistsError):
            folder.write_new("x", b"mine too")  # the same bytes, but another's put


_RACER = """
import sys
from cluster.storage import Folder
folder = Folder(sys.argv[1])
folder.exists("warm")
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[2])):
    try:
        folder.write_new(f"n{i}", sys.argv[3].encode())
        print(i)
    except FileExistsError:
        pass
"""


def test_of_two_processes_that_write_new_exactly_one_wins_each_name(folder, endpoint):
    with faulty_proxy(endpoint, probability=0, serial=True) as proxy:
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", _RACER, folder.uri, "12", letter],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint},
            )
            for letter in "ab"
        ]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [set(racer.communicate(timeout=60)[0].split()) for racer in racers]
    assert not won[0] & won[1]
    assert won[0] | won[1] == {str(i) for i in range(12)}
    for letter, names in zip("ab", won):
        assert all(folder.read(f"n{i}") == letter.encode() for i in names)


def test_a_write_of_64_mb_is_one_put(folder, endpoint, monkeypatch):
    with faulty_proxy(endpoint, probability=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        folder.write("part", bytes(64 * 2**20))
        assert [method for method, _ in proxy.requests] == ["PUT"]
    assert folder.list()[0].bytes == 64 * 2**20


def test_retries_are_counted_and_a_faulty_server_is_survived(folder, endpoint, monkeypatch):
    folder.write("x", b"content")
    with faulty_proxy(endpoint, kinds=("500",), max_faults=2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        before = s3.retry_count()
        assert folder.read("x") == b"content"
        assert s3.retry_count() - before == 2 == len(proxy.faults)


@pytest.mark.parametrize(
    ("kind", "words"), [("500", "Injected InternalError"), ("503", "Injected SlowDown"), ("reset", "Could not connect")]
)
def test_a_failing_server_is_retryable_and_bounded(folder, endpoint, monkeypatch, kind, words):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with faulty_proxy(endpoint, kinds=(kind,)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match=words) as error:
            folder.read("x")
        assert error.value.retryable
        assert not error.value.missing
        assert sum(path.startswith("/") for _, path in proxy.requests) <= 4  # a reset makes aiohttp itself ask again


def test_a_failing_server_does_not_pass_for_a_missing_file(folder, endpoint, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty_proxy(endpoint, kinds=("500",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match="Internal Server Error") as error:
            folder.exists("x")
        assert error.value.retryable


def test_a_server_that_never_answers_ends_in_an_error(folder, endpoint, monkeypatch):
    monkeypatch.setattr(s3, "LIMIT_S", 1.0)
    with faulty_proxy(endpoint, kinds=("stall",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        start = time.monotonic()
        with pytest.raises(StorageError, match="no answer within 1 s") as error:
            folder.read("x")
        assert time.monotonic() - start < 5
        assert error.value.retryable


def test_one_missing_object_is_missing_and_not_the_servers_fault(folder, tmp_path):
    for ask in (stat, lambda uri: fetch(uri, tmp_path / "x")):
        with pytest.raises(
            StorageError, match=r"a store/none: The specified key does not exist. \(NoSuchKey\)"
        ) as error:
            ask(folder.uri_of("none"))
        assert error.value.missing
        assert not error.value.retryable
    with pytest.raises(StorageError, match=r"cannot write to s3://no-such-bucket-here.*does not exist"):
        Folder("s3://no-such-bucket-here/x").check_writable()
    assert list(tmp_path.iterdir()) == []


def _client_error(status, code):
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code, "Message": "W"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Get")


@pytest.mark.parametrize(
    ("status", "code", "retryable", "missing"),
    [
        (403, "AccessDenied", False, False),
        (403, "ExpiredToken", True, False),
        (403, "InvalidAccessKeyId", True, False),
        (404, "NoSuchKey", False, True),
        (404, "404", False, True),
        (429, "TooManyRequests", True, False),
        (503, "SlowDown", True, False),
    ],
)
def test_a_bad_account_is_no_fault_of_the_video(status, code, retryable, missing):
    error = s3._said("s3://b/k", _client_error(status, code))
    assert (error.retryable, error.missing) == (retryable, missing)
    assert str(error) == f"s3://b/k: W ({code})"


def test_without_credentials_the_error_says_what_to_set(folder, monkeypatch, tmp_path):
    for key in CREDENTIALS:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID") as error:
        folder.list()
    assert error.value.retryable


def test_fetch_goes_on_after_broken_answers(folder, endpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("cluster.storage.PIECE_BYTES", 2**20)
    data = os.urandom(5 * 2**19)
    folder.write("v.mp4", data)
    for kind in ("cut", "500"):
        with faulty_proxy(endpoint, kinds=(kind,), max_faults=2, only=lambda method, _: method == "GET") as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            before = s3.retry_count()
            assert fetch(folder.uri_of("v.mp4"), tmp_path / "v.mp4").read_bytes() == data
            assert s3.retry_count() - before == 2 == len(proxy.faults)


def test_fetch_refuses_larger_and_changed_objects_and_leaves_nothing(folder, endpoint, monkeypatch, tmp_path):
    old = folder.write("v.mp4", b"1" * 100)
    uri, local = folder.uri_of("v.mp4"), tmp_path / "v.mp4"
    with pytest.raises(StorageError, match="100 bytes, more than the 99 expected"):
        fetch(uri, local, max_bytes=99)
    folder.write("v.mp4", b"2" * 100)
    with pytest.raises(StorageError, match="changed since it was listed"):
        fetch(uri, local, version=old)
    monkeypatch.setattr("cluster.storage.PIECE_BYTES", 60)
    real_get = s3.get

    def change_between_pieces(place, **wanted):
        answer = real_get(place, **wanted)
        folder.write("v.mp4", b"3" * 100)
        return answer

    monkeypatch.setattr(s3, "get", change_between_pieces)
    with pytest.raises(StorageError, match="changed since it was listed"):
        fetch(uri, local)
    assert list(tmp_path.iterdir()) == []


def test_fetch_of_an_empty_object_gives_an_empty_file(folder, tmp_path):
    version = folder.write("empty", b"")
    assert fetch(folder.uri_of("empty"), tmp_path / "a").read_bytes() == b""
    assert fetch(folder.uri_of("empty"), tmp_path / "b", max_bytes=0, version=version).read_bytes() == b""


_MEASURED_FETCH = """
import sys
from cluster.storage import fetch, stat
stat(sys.argv[1])
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
def status(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1])
base = status("VmRSS")
fetch(sys.argv[1], sys.argv[2])
print((status("VmHWM") - base) // 1024)
"""


def _grown_by_mb(uri, local):
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURED_FETCH, uri, str(local)], text=True, capture_output=True, check=True
    )
    return int(measured.stdout)


class _GiantObject(BaseHTTPRequestHandler):
    """Answers as S3 does for one object of `size` zeros; moto reads the whole of an object for each range of it."""

    protocol_version = "HTTP/1.1"
    size = 0

    def do_GET(self):
        start, end = 0, self.size - 1
        self.send_response(206 if "Range" in self.headers else 200)
        if asked := self.headers.get("Range"):
            start, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            end = min(end, self.size - 1)
            self.send_header("Content-Range", f"bytes {start}-{end}/{self.size}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            for _ in range((end + 1 - start) // 2**20):
                self.wfile.write(bytes(2**20))

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("mb", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_size_of_the_object(folder, tmp_path, monkeypatch, mb):
    monkeypatch.setattr(_GiantObject, "size", mb * 2**20)
    with ThreadingHTTPServer(("127.0.0.1", 0), _GiantObject) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        grown_mb = _grown_by_mb("s3://bucket/big.mp4", tmp_path / "big.mp4")
        server.shutdown()
    assert (tmp_path / "big.mp4").stat().st_size == mb * 2**20
    assert grown_mb < 60, f"fetching {mb} MB took {grown_mb} MB of memory"


@pytest.mark.slow
def test_a_large_object_comes_whole_from_moto(folder, tmp_path):
    data = os.urandom(100 * 2**20)
    folder.write("big.mp4", data)
    assert fetch(folder.uri_of("big.mp4"), tmp_path / "big.mp4").read_bytes() == data


def test_one_client_serves_all_threads_and_follows_the_environment(folder, monkeypatch):
    clients = []
    threads = [threading.Thread(target=lambda: clients.append(s3.filesystem())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(client) for client in clients}) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert s3.filesystem() is not clients[0]


def test_threads_read_and_write_at_once(folder):
    failed = []

    def use(i):
        try:
            folder.write(f"{i}", bytes([i]) * 1000)
            assert folder.read(f"{i}") == bytes([i]) * 1000
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(folder.list()) == 40


def test_pyarrow_reads_the_folder_also_after_pickling(folder):
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    folder.write("part-1.parquet", sink.getvalue().to_pybytes())
    folder.write("_spec.json", b"{}")
    filesystem, root = folder.filesystem()
    assert ds.dataset(root, filesystem=pickle.loads(pickle.dumps(filesystem))).to_table().to_pydict() == {"x": [1]}


def test_check_writable_leaves_nothing(folder):
    folder.check_writable()
    assert folder.list() == []


@pytest.mark.parametrize("mb", [1, pytest.param(120, marks=pytest.mark.slow)])  # the larger comes in parts
def test_a_local_file_is_put_whole_and_a_failed_put_leaves_nothing(folder, endpoint, monkeypatch, tmp_path, mb):
    data = os.urandom(mb * 2**20)
    (tmp_path / "table.csv").write_bytes(data)
    folder.put_file("out.csv", tmp_path / "table.csv")
    assert read(folder.uri_of("out.csv")) == data
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty_proxy(endpoint, only=lambda method, _: method == "PUT") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match="Injected InternalError"):
            folder.put_file("other.csv", tmp_path / "table.csv")
        assert not folder.exists("other.csv")
