"""The damaged files of a made corpus are what they are said to be, each time the same."""

import odd_videos as odd
import pytest

from mma.faces import FaceOptions
from mma.video.damage import KINDS, write_damaged
from mma.video.errors import VideoError
from mma.video.options import DecodeOptions
from mma.video.slot import DecodeSlot


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    clip = odd.write_clip(folder / "good.mp4", frames=24)
    return folder, clip, write_damaged(folder / "first", [clip], 4 * len(KINDS), seed=3)


def test_every_kind_comes_and_the_same_seed_gives_the_same_bytes(damaged):
    folder, clip, written = damaged
    assert {entry["kind"] for entry in written} == {kind for kind, _ in KINDS}
    again = write_damaged(folder / "second", [clip], 4 * len(KINDS), seed=3)
    assert again == written
    for entry in written:
        assert (folder / "first" / entry["name"]).read_bytes() == (folder / "second" / entry["name"]).read_bytes()


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_each_file_fares_as_announced(damaged, decoder):
    folder, _, written = damaged
    with DecodeSlot(DecodeOptions(decoder=decoder, faces=FaceOptions(detector="none"))) as slot:
        for entry in written:
            try:
                status = "partial" if list(slot.chunks(folder / "first" / entry["name"]))[-1].damage else "ok"
            except VideoError:
                status = "failed"
            # Without a detector every frame counts as a face: that the face-less have none is for the detectors' tests.
            assert status == entry["expected"].replace("no_face", "ok"), entry


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_a_turned_clip_shows_the_good_clips_pictures(damaged, decoder):
    from mma.video.readers import open_video

    folder, _, written = damaged
    name = next(entry["name"] for entry in written if entry["kind"] == "rotated")
    reader = open_video(folder / "first" / name, decoder=decoder)
    assert [odd.frame_number(picture) for _, picture in reader.frames(range(24))] == list(range(24))


def test_without_a_good_clip_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="good_clips"):
        write_damaged(tmp_path, [], 3, seed=0)
