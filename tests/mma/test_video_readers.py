"""Odd videos through both readers: the same frames, times and pixels, upright, and damage said."""

import numpy as np
import odd_videos as odd
import pytest

from mma.video.errors import VideoError
from mma.video.readers import open_video

pytest.importorskip("decord", reason="decord has no wheel here; PyAV decodes alone")

VARIABLE_S = np.cumsum(np.random.default_rng(0).integers(10, 200, 40)) / 1000

PEAKS = {"10-bit": (1.0, 32)}
"""Largest mean and single difference of pixels between the decoders (of 255); nothing at all where not named: decord's
FFmpeg of 2018 dithers deep colour otherwise."""

SAME_BY_BOTH = {
    "plain": ("a.mp4", {}),
    "90 degrees": ("a.mp4", {"rotate_deg": 90}),
    "180 degrees": ("a.mp4", {"rotate_deg": 180}),
    "270 degrees": ("a.mp4", {"rotate_deg": 270}),
    "variable rate": ("a.mp4", {"times_s": VARIABLE_S}),
    "with sound": ("a.mp4", {"audio": True}),
    "10-bit": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "grey": ("a.mp4", {"pix_fmt": "gray"}),
    "4:4:4 of odd size": ("a.mp4", {"pix_fmt": "yuv444p", "size_px": (193, 127)}),
    "4:2:2": ("a.mp4", {"pix_fmt": "yuv422p"}),
    "BT.709": ("a.mp4", {"colour": {"colorspace": 1, "color_range": 1}}),
    "full range": ("a.mp4", {"pix_fmt": "yuvj420p"}),
    "a still": ("a.mp4", {"frames": 1}),
    "matroska": ("a.mkv", {}),
    "transport stream": ("a.ts", {}),
    "flash": ("a.flv", {}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "mjpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4"}),
    "hevc": ("a.mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}}),
}

BY_PYAV = {
    "AV1": ("a.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
    "edit list hides frames": ("a.mp4", {"first_time_s": -0.3}),
    "AVI with B-frames": ("a.avi", {}),
    "mpeg2": ("a.mpg", {"codec": "mpeg2video", "fps": 25}),
    "wmv": ("a.wmv", {"codec": "wmv2"}),
    "key frames too far apart": ("a.mp4", {"size_px": (1920, 1080), "gop": 40, "options": {"preset": "ultrafast"}}),
}


def read(path, decoder, indices=None):
    reader = open_video(path, decoder=decoder)
    frames = dict(reader.frames(range(reader.info.num_frames) if indices is None else indices))
    return reader, frames


@pytest.mark.parametrize("name", SAME_BY_BOTH)
def test_decord_and_pyav_agree_on_frames_times_and_pixels(name, tmp_path):
    file, settings = SAME_BY_BOTH[name]
    path = odd.write_clip(tmp_path / file, **settings)
    (decord, by_decord), (pyav, by_pyav) = read(path, "decord"), read(path, "pyav")
    assert (decord.decoder, pyav.decoder) == ("decord", "pyav")
    assert list(by_decord) == list(by_pyav) == list(range(settings.get("frames", 40)))
    np.testing.assert_array_equal(decord.times_s, pyav.times_s)
    assert decord.info == pyav.info
    assert decord.damage is pyav.damage is None
    apart = [np.abs(by_decord[i].astype(int) - by_pyav[i].astype(int)) for i in by_pyav]
    mean, peak = PEAKS.get(name, (0, 0))
    assert np.mean([a.mean() for a in apart]) <= mean
    assert max(a.max() for a in apart) <= peak
    assert [odd.frame_number(by_decord[i]) for i in by_decord] == list(by_decord)


@pytest.mark.parametrize("name", BY_PYAV)
def test_pyav_reads_what_decord_cannot(name, tmp_path):
    file, settings = BY_PYAV[name]
    path = odd.write_clip(tmp_path / file, **settings)
    reader, frames = read(path, "auto")
    assert reader.decoder == "pyav"
    assert reader.damage is None
    first = 6 if "first_time_s" in settings else 0
    assert [odd.frame_number(frames[i]) for i in frames] == list(range(first, 40))
    assert (np.diff(reader.times_s) > 0).all()
    with pytest.raises(VideoError, match="decoder auto"):
        open_video(path, decoder="decord")


def test_rotated_clip_comes_out_upright(tmp_path):
    path = odd.write_clip(tmp_path / "turned.mp4", rotate_deg=90, frames=3)
    reader, frames = read(path, "auto")
    assert (reader.info.width_px, reader.info.height_px) == (192, 128)
    assert frames[2].shape == (128, 192, 3)
    assert np.abs(frames[2].astype(int) - odd.card(2)).mean() < 12


def test_variable_rate_keeps_the_containers_stamps(tmp_path):
    path = odd.write_clip(tmp_path / "a.mp4", times_s=VARIABLE_S)
    np.testing.assert_allclose(open_video(path).times_s, VARIABLE_S, atol=1e-3)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("gop", [1, 7, 40])
def test_sampled_frames_are_the_frames_of_a_whole_reading(decoder, gop, tmp_path):
    path = odd.write_clip(tmp_path / "a.mp4", gop=gop)
    _, whole = read(path, decoder)
    for indices in ([39], [0, 13, 26], [6, 7, 8], list(range(3, 40, 4))):
        _, some = read(path, decoder, indices)
        assert list(some) == indices
        for index in indices:
            np.testing.assert_array_equal(some[index], whole[index])


def test_open_groups_of_pictures_are_read_whole(tmp_path):
    open_gop = {"x264-params": "open-gop=1:bframes=2:keyint=10:min-keyint=10:scenecut=0"}
    path = odd.write_clip(tmp_path / "a.ts", options=open_gop)
    reader, frames = read(path, "auto")
    assert [odd.frame_number(frames[i]) for i in frames] == list(range(40))
    assert reader.damage is None


def test_truncated_clip_gives_its_good_frames(tmp_path):
    good = odd.write_clip(tmp_path / "a.mp4")
    whole = read(good, "pyav")[1]
    reader, frames = read(odd.truncate(good, tmp_path / "cut.mp4"), "auto")
    assert reader.decoder == "pyav"
    assert reader.damage is not None
    assert "of 40 frames" in reader.damage
    assert reader.info.duration_s == pytest.approx(2.0)  # of the whole video: what is lost is time without a face
    assert 10 < len(frames) < 40
    for index, picture in frames.items():
        np.testing.assert_array_equal(picture, whole[index])


def test_bit_rot_is_refused_by_decord_and_left_out_by_pyav(tmp_path):
    good = odd.write_clip(tmp_path / "a.mp4", frames=240, gop=24)
    whole = read(good, "pyav")[1]
    rotten = odd.scratch_bytes(good, tmp_path / "rotten.mp4", start=0.7)
    reader, frames = read(rotten, "auto")
    assert reader.decoder == "decord+pyav"
    assert reader.damage is not None
    assert "could not be decoded" in reader.damage
    assert list(frames) == sorted(set(frames))
    _, by_pyav = read(rotten, "pyav")
    assert list(frames) == list(by_pyav)
    assert 96 <= len(frames) < 240
    with pytest.raises(VideoError, match="decoder auto goes on") as caught:
        read(rotten, "decord")
    assert caught.value.error_type == "DecordRefused"
    # What is handed out as good before the damage is good, and taking over moved nothing.
    for index in list(frames)[:96]:
        np.testing.assert_array_equal(frames[index], whole[index])
    for index in frames:
        np.testing.assert_array_equal(frames[index], by_pyav[index])


def test_a_clip_cut_before_its_index_is_refused(tmp_path):
    good = odd.write_clip(tmp_path / "a.mp4")
    with pytest.raises(VideoError) as caught:
        open_video(odd.without_index(good, tmp_path / "cut.mp4"))
    assert caught.value.stage == "open"


def test_sound_alone_is_no_video(tmp_path):
    with pytest.raises(VideoError) as caught:
        open_video(odd.write_audio_only(tmp_path / "a.mp4"))
    assert caught.value.error_type == "NoVideoStream"


def test_a_track_without_frames_is_no_video(tmp_path):
    with pytest.raises(VideoError) as caught:
        open_video(odd.zero_frames(tmp_path / "a.mp4"))
    assert caught.value.error_type == "NoFrames"


def test_without_decord_auto_reads_by_pyav(tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "decord" else find(name, *rest)
    )
    reader, frames = read(odd.write_clip(tmp_path / "a.mp4", frames=4), "auto")
    assert (reader.decoder, len(frames)) == ("pyav", 4)


def test_indices_out_of_order_are_refused(tmp_path):
    reader = open_video(odd.write_clip(tmp_path / "a.mp4", frames=4))
    with pytest.raises(ValueError, match="increase"):
        list(reader.frames([2, 1]))


def test_a_truncated_matroska_file_is_noticed_too(tmp_path):
    data = odd.write_clip(tmp_path / "a.mkv", frames=80).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: int(len(data) * 0.6)])
    reader, frames = read(tmp_path / "cut.mkv", "auto")
    assert 10 < len(frames) < 80
    assert reader.damage is not None
    assert "ends early" in reader.damage
    assert reader.info.duration_s == pytest.approx(4.0, abs=0.06)
