"""Who was forgotten is recognised by the id alone, and told by no file."""

import json

import pytest

from cluster.storage import Folder
from mma.store.tombstones import TOMBSTONES, forgotten, write_tombstone


@pytest.fixture
def store(tmp_path) -> Folder:
    return Folder(str(tmp_path / "s"))


def files(store: Folder) -> list[bytes]:
    folder = store.child(TOMBSTONES)
    return [folder.read(entry.name) for entry in folder.list()]


def test_a_store_without_tombstones_has_forgotten_nobody(store):
    assert forgotten(store, ["anna", "bert"]) == set()


def test_ids_are_recognised_whole_and_over_several_tombstones(store):
    write_tombstone(store, "r1", ["anna", "anna", "ünal/mp4/00"])
    write_tombstone(store, "r2", ["bert"])
    assert forgotten(store, ["anna", "Anna", "ann", "anna2", "bert", "ünal/mp4/00", ""]) == {
        "anna",
        "bert",
        "ünal/mp4/00",
    }


def test_no_file_tells_the_ids_or_their_plain_hashes(store):
    import hashlib

    write_tombstone(store, "r1", ["anna"])
    (data,) = files(store)
    told = json.loads(data)
    assert set(told) == {"salt", "sha256"}
    assert b"anna" not in data
    assert told["sha256"] != [hashlib.sha256(b"anna").hexdigest()]
    assert len(bytes.fromhex(told["salt"])) == 16


def test_a_store_has_one_salt_and_another_store_another(store, tmp_path):
    write_tombstone(store, "r1", ["anna"])
    write_tombstone(store, "r2", ["anna", "bert"])
    first, second = map(json.loads, files(store))
    assert first["salt"] == second["salt"]
    assert set(first["sha256"]) < set(second["sha256"])
    other = Folder(str(tmp_path / "other"))
    write_tombstone(other, "r1", ["anna"])
    assert json.loads(files(other)[0])["salt"] != first["salt"]


def test_tombstones_of_two_salts_are_both_heeded(store, tmp_path):
    other = Folder(str(tmp_path / "other"))
    write_tombstone(store, "r1", ["anna"])
    write_tombstone(other, "r2", ["bert"])
    store.child(TOMBSTONES).write("r2.json", files(other)[0])  # two stores were merged
    assert forgotten(store, ["anna", "bert", "carl"]) == {"anna", "bert"}


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'{"salt": "x"}', b'{"salt": 1, "sha256": []}', b'{"salt": "x", "sha256": "y"}']
)
def test_a_tombstone_that_cannot_be_read_stops_whoever_asks(store, data):
    store.child(TOMBSTONES).write("r1.json", data)
    with pytest.raises(ValueError, match=r"_forgotten/r1\.json cannot be read"):
        forgotten(store, ["anna"])
    with pytest.raises(ValueError, match=r"_forgotten/r1\.json cannot be read"):
        write_tombstone(store, "r2", ["bert"])
