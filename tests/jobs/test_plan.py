"""From --videos to a plan: folders, globs, tables, odd names, and errors that name the file and the mend."""

import itertools
import os

import pytest

from cluster.uri import parse_uri
from jobs.outcome import InputError
from jobs.plan import find_videos, shard


@pytest.fixture
def corpus(tmp_path):
    for name in ("a.mp4", "b b.MKV", "sub/c.mp4", "sub/deep/d.webm", "notes.txt", "ü ñ.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    return tmp_path


def ids(uri, **settings) -> list[str]:
    return find_videos(str(uri), **settings).videos["video_id"].to_pylist()


def test_a_folder_is_searched_through_and_other_files_are_counted(corpus):
    plan = find_videos(str(corpus))
    assert plan.videos["video_id"].to_pylist() == ["a", "b b", "c", "d", "ü ñ"]
    assert plan.ignored_files == 1
    assert plan.videos["bytes"].to_pylist() == [5] * 5
    assert all(os.path.isabs(uri) for uri in plan.videos["uri"].to_pylist())


def test_globs_stay_within_a_folder_unless_they_say_otherwise(corpus):
    assert ids(corpus / "*.mp4") == ["a", "ü ñ"]
    assert ids(corpus / "**" / "*.mp4") == ["a", "c", "ü ñ"]
    assert ids(corpus / "*" / "*.mp4") == ["c"]
    assert ids(corpus / "notes.*") == ["notes"]


def test_a_real_file_whose_name_holds_a_glob_sign_is_taken_as_it_is(tmp_path):
    (tmp_path / "take [1].mp4").write_bytes(b"1")
    assert ids(tmp_path / "take [1].mp4") == ["take [1]"]


def test_one_file_is_a_plan_of_one(corpus):
    assert ids(corpus / "a.mp4") == ["a"]


def test_ids_may_be_paths(corpus):
    assert ids(corpus, video_id="path")[2:4] == ["sub/c.mp4", "sub/deep/d.webm"]


def test_two_files_of_one_stem_are_named_with_the_option(corpus):
    (corpus / "sub" / "a.mp4").write_bytes(b"1")
    with pytest.raises(InputError) as error:
        find_videos(str(corpus))
    assert all(part in str(error.value) for part in ("'a'", "/a.mp4", "/sub/a.mp4", "--video-id"))
    assert len(ids(corpus, video_id="path")) == 6


def test_a_table_names_ids_and_places_of_any_kind(corpus):
    table = corpus / "videos.csv"
    table.write_text('video_id,uri,more\n../x,a.mp4,1\n"two\nlines",/abs/b.mp4,2\n007,s3://bucket/k e y.mp4,3\n')
    plan = find_videos(str(table)).videos
    assert plan["video_id"].to_pylist() == ["../x", "two\nlines", "007"]
    assert plan["uri"].to_pylist() == [str(corpus / "a.mp4"), "/abs/b.mp4", "s3://bucket/k e y.mp4"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("id,uri\nx,a.mp4\n", "video_id"),
        ("video_id,uri\nx,a.mp4\nx,b.mp4\n", "'x'"),
        ("video_id,uri\nx,a.mp4\ny,http://evil/v.mp4\n", "row 2"),
        ("video_id,uri\nx,concat:a|b\ny,ffconcat://b\n", "row 2"),
        ("video_id,uri\n,a.mp4\n", "row 1"),
        ("video_id,uri\nx,a.mp4,1\n", "videos.csv"),
    ],
)
def test_a_wrong_table_is_refused_by_row_and_column(tmp_path, content, told):
    table = tmp_path / "videos.csv"
    table.write_text(content)
    with pytest.raises(InputError) as error:
        find_videos(str(table))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none", "none/*.mp4", "none.csv", "empty"])
def test_nothing_there_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--videos.*(none|empty)"):
        find_videos(str(tmp_path / name))


def test_names_that_are_not_utf8_find_their_file_again(tmp_path):
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4")
    with open(raw, "wb") as file:
        file.write(b"1")
    plan = find_videos(str(tmp_path)).videos
    (uri,) = plan["uri"].to_pylist()
    assert os.path.exists(parse_uri(uri).path)


def test_shards_cover_the_plan_once(corpus):
    videos = find_videos(str(corpus)).videos
    parts = [shard(videos, f"{i}/3")["video_id"].to_pylist() for i in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == sorted(videos["video_id"].to_pylist())
    for wrong in ("0/3", "4/3", "x", "1/"):
        with pytest.raises(InputError, match="--shard"):
            shard(videos, wrong)
