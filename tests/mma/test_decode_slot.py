"""The decoding child: chunks that do not depend on timing, and a bounded price for every kind of bad video."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import faults
import numpy as np
import odd_videos as odd
import psutil
import pytest

from mma.faces import FaceOptions
from mma.video.errors import VideoError
from mma.video.options import DecodeOptions
from mma.video.slot import DecodeSlot

OPTIONS = DecodeOptions(faces=FaceOptions(detector="none"), memory_bytes=1 << 30, timeout_s=3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return odd.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=50)


def options(**changes):
    return dataclasses.replace(OPTIONS, **changes)


def faulty_slot(monkeypatch, tmp_path, chosen, **changes):
    for name, value in faults.fault_environment(tmp_path, chosen).items():
        monkeypatch.setenv(name, value)
    return DecodeSlot(options(**changes))


def copy_of(clip, name):
    target = clip.with_name(name)
    if not target.exists():
        os.link(clip, target)
    return target


def test_chunks_hold_every_frame_once_in_order(clip):
    with DecodeSlot(options(chunk_frames=20)) as slot:
        chunks = list(slot.chunks(clip))
    assert [(c.chunk_index, c.is_last, len(c.frame_index)) for c in chunks] == [
        (0, False, 20),
        (1, False, 20),
        (2, True, 10),
    ]
    assert np.concatenate([c.frame_index for c in chunks]).tolist() == list(range(50))
    np.testing.assert_allclose(np.concatenate([c.time_s for c in chunks]), np.arange(50) / 20)
    assert all(c.faces.shape == (len(c.frame_index), 112, 112, 3) for c in chunks)
    assert chunks[-1].damage is None
    assert {c.decoder for c in chunks} == {"pyav"}
    assert (chunks[0].info.width_px, chunks[0].info.height_px, chunks[0].info.num_frames) == (192, 128, 50)


def test_a_chunk_that_ends_with_the_video_is_the_last(clip):
    with DecodeSlot(options(chunk_frames=25)) as slot:
        assert [(len(c.frame_index), c.is_last) for c in slot.chunks(clip)] == [(25, False), (25, True)]


def test_chunk_size_changes_no_face(clip):
    with DecodeSlot(options(chunk_frames=7)) as small, DecodeSlot(options(chunk_frames=1024)) as large:
        (whole,) = large.chunks(clip)
        np.testing.assert_array_equal(np.concatenate([c.faces for c in small.chunks(clip)]), whole.faces)


def test_sampling_reaches_the_child(clip):
    with DecodeSlot(options(fps=5)) as slot:
        (chunk,) = slot.chunks(clip)
    assert chunk.frame_index.tolist() == list(range(0, 50, 4))


def test_one_child_serves_many_videos_and_is_replaced_in_time(clip):
    with DecodeSlot(options(videos_per_child=2)) as slot:
        children = []
        for _ in range(4):
            list(slot.chunks(clip))
            children.append(slot.child_pid)
        assert slot.videos_done == 4
    assert children[0] is not None
    assert children[0] != children[2]
    assert children[1] is children[3] is None
    assert not psutil.pid_exists(children[0])


def test_errors_of_the_video_leave_the_child_alive(clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with DecodeSlot(OPTIONS) as slot:
        list(slot.chunks(clip))
        child = slot.child_pid
        with pytest.raises(VideoError) as caught:
            list(slot.chunks(tmp_path / "text.mp4"))
        assert (caught.value.stage, caught.value.error_type) == ("sniff", "NotAVideo")
        list(slot.chunks(clip))
        assert slot.child_pid == child


def test_a_damaged_file_gives_its_good_frames_and_says_so(clip, tmp_path):
    with DecodeSlot(OPTIONS) as slot:
        (chunk,) = slot.chunks(odd.truncate(clip, tmp_path / "cut.mp4"))
    assert chunk.is_last
    assert 10 < len(chunk.frame_index) < 50
    assert "of 50 frames" in chunk.damage


def test_a_segfault_costs_one_video(clip, tmp_path, monkeypatch):
    bad = copy_of(clip, "crasher.mp4")
    with faulty_slot(monkeypatch, tmp_path, {"crasher": "segfault"}) as slot:
        with pytest.raises(VideoError) as caught:
            list(slot.chunks(bad))
        assert caught.value.error_type == "DecoderCrashed"
        assert "SIGSEGV" in caught.value.message
        assert len(list(slot.chunks(clip))) == 1


def test_frames_before_a_crash_are_handed_out_first(clip, tmp_path, monkeypatch):
    bad = odd.write_clip(clip.with_name("late.mp4"), frames=300)
    chunks = []
    with faulty_slot(monkeypatch, tmp_path, {"late": "segfault_late:250"}, chunk_frames=100) as slot:
        stream = slot.chunks(bad)
        with pytest.raises(VideoError) as caught:
            chunks += iter(lambda: next(stream), None)
    assert not any(chunk.is_last for chunk in chunks)
    assert len(chunks[0].frame_index) == 100
    frames = np.concatenate([chunk.frame_index for chunk in chunks])
    assert frames.tolist() == list(range(len(frames)))
    assert caught.value.error_type == "DecoderCrashed"
    assert f"SIGSEGV, after frame {frames[-1]}" in caught.value.message


def test_a_child_that_sleeps_holding_the_gil_is_killed_in_time(clip, tmp_path, monkeypatch):
    bad = copy_of(clip, "sleeper.mp4")
    with faulty_slot(monkeypatch, tmp_path, {"sleeper": "sleep"}) as slot:
        list(slot.chunks(clip))
        child = slot.child_pid
        start_s = time.monotonic()
        with pytest.raises(VideoError) as caught:
            list(slot.chunks(bad))
        assert 2.9 < time.monotonic() - start_s < 6
        assert caught.value.error_type == "DecodeTimeout"
        assert not psutil.pid_exists(child)


def test_memory_without_end_is_an_error_of_that_video(clip, tmp_path, monkeypatch):
    bad = copy_of(clip, "glutton.mp4")
    with faulty_slot(monkeypatch, tmp_path, {"glutton": "memory"}) as slot:
        with pytest.raises(VideoError) as caught:
            list(slot.chunks(bad))
        assert caught.value.error_type == "OutOfMemory"
        assert len(list(slot.chunks(clip))) == 1


def test_a_kill_from_outside_is_told_apart_and_a_dead_idle_child_is_replaced(clip):
    with DecodeSlot(options(chunk_frames=1)) as slot:
        chunks = slot.chunks(odd.write_clip(clip.with_name("long.mp4"), frames=600, gop=100))
        next(chunks)
        os.kill(slot.child_pid, signal.SIGKILL)
        with pytest.raises(VideoError) as caught:
            list(chunks)
        assert caught.value.error_type == "OutOfMemory"
        list(slot.chunks(clip))
        os.kill(slot.child_pid, signal.SIGKILL)
        assert sum(len(c.frame_index) for c in slot.chunks(clip)) == 50


def test_a_reader_that_stops_early_leaves_no_child_behind(clip):
    with DecodeSlot(options(chunk_frames=1)) as slot:
        chunks = slot.chunks(clip)
        next(chunks)
        child = slot.child_pid
        chunks.close()
        assert not psutil.pid_exists(child)
        assert len(list(slot.chunks(clip))) == 50


def test_a_slow_caller_is_not_the_decoders_fault(clip):
    with DecodeSlot(options(chunk_frames=1, timeout_s=1)) as slot:
        chunks = slot.chunks(clip)
        next(chunks)
        time.sleep(1.5)
        assert len(list(chunks)) == 49


def test_opened_videos_can_be_counted(clip, tmp_path, monkeypatch):
    with faulty_slot(monkeypatch, tmp_path, {"*": "count"}) as slot:
        list(slot.chunks(clip))
        list(slot.chunks(clip))
    assert faults.opened_videos(tmp_path) == ["clip.mp4", "clip.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process's life to its parent's")
@pytest.mark.parametrize("state", ["idle", "stuck"])
def test_the_child_dies_with_its_parent(state, clip, tmp_path):
    bad = copy_of(clip, "sleeper.mp4")
    program = (
        "import sys, threading, time\n"
        "from mma.faces import FaceOptions\n"
        "from mma.video.options import DecodeOptions\n"
        "from mma.video.slot import DecodeSlot\n"
        "slot = DecodeSlot(DecodeOptions(faces=FaceOptions(detector='none')))\n"
        "list(slot.chunks(sys.argv[1]))\n"
        "print(slot.child_pid, flush=True)\n"
        "list(slot.chunks(sys.argv[2])) if sys.argv[3] == 'stuck' else time.sleep(60)\n"
    )
    environment = {**os.environ, **faults.fault_environment(tmp_path, {"sleeper": "sleep"})}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(clip), str(bad), state], stdout=subprocess.PIPE, env=environment
    )
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_of_an_ended_thread_is_replaced(clip):
    with DecodeSlot(OPTIONS) as slot:
        thread = threading.Thread(target=lambda: list(slot.chunks(clip)))
        thread.start()
        thread.join()
        assert sum(len(c.frame_index) for c in slot.chunks(clip)) == 50


def test_the_child_never_imports_torch(clip):
    with DecodeSlot(OPTIONS) as slot:
        list(slot.chunks(clip))
        maps = psutil.Process(slot.child_pid).memory_maps()
        assert not [m.path for m in maps if "libtorch" in m.path]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_decord_is_loaded_where_it_is_asked_for_alone(decoder, clip):
    pytest.importorskip("decord", reason="decord has no wheel here; PyAV decodes alone")
    with DecodeSlot(options(decoder=decoder)) as slot:
        assert {chunk.decoder for chunk in slot.chunks(clip)} == {decoder}
        maps = psutil.Process(slot.child_pid).memory_maps()
        assert bool([m.path for m in maps if "libdecord" in m.path]) == (decoder == "decord")


GROWTH_MB = {"pyav": 100, "decord": 300}
"""decord holds a group of pictures, PyAV a few frames."""


@pytest.mark.parametrize("decoder", GROWTH_MB)
def test_memory_of_the_child_stays_small_for_720p(decoder, tmp_path):
    path = odd.write_clip(
        tmp_path / "hd.mp4", frames=240, size_px=(1280, 720), gop=60, options={"preset": "ultrafast"}, picture=_cheap
    )
    small = odd.write_clip(tmp_path / "small.mp4", frames=2)
    with DecodeSlot(options(decoder=decoder)) as slot:
        list(slot.chunks(small))
        base = _peak_bytes(slot.child_pid)
        assert {chunk.decoder for chunk in slot.chunks(path)} == {decoder}
        assert _peak_bytes(slot.child_pid) < base + (GROWTH_MB[decoder] << 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how glibc keeps memory is set on Linux alone")
def test_the_child_keeps_its_memory_from_frame_to_frame(tmp_path):
    """Given back and taken anew, the pages of a frame cost a fifth of all decoding: a hundred faults a frame."""
    path = odd.write_clip(tmp_path / "vga.mp4", frames=60, size_px=(640, 480), picture=_cheap)
    with DecodeSlot(options(faces=FaceOptions(detect_every=10))) as slot:
        list(slot.chunks(path))
        before = _page_faults(slot.child_pid)
        assert sum(len(chunk.frame_index) for chunk in slot.chunks(path)) == 60
        assert _page_faults(slot.child_pid) - before < 60 * 20


def _page_faults(pid):
    with open(f"/proc/{pid}/stat") as status:
        return int(status.read().rpartition(")")[2].split()[7])


@pytest.mark.slow
@pytest.mark.parametrize("fps", [None, 1])
@pytest.mark.parametrize(("gop", "decoder"), [(60, "decord"), (60, "pyav"), (250, "pyav")])
def test_memory_of_an_hour_of_720p(fps, gop, decoder, tmp_path):
    minute = odd.write_clip(
        tmp_path / "minute.mp4",
        frames=1500,
        fps=25,
        size_px=(1280, 720),
        gop=gop,
        options={"preset": "ultrafast"},
        picture=_cheap,
    )
    hour = odd.remux(minute, tmp_path / "hour.mp4", times=60)
    small = odd.write_clip(tmp_path / "small.mp4", frames=2)
    with DecodeSlot(options(fps=fps, timeout_s=60, decoder=decoder)) as slot:
        list(slot.chunks(small))
        base, own = _peak_bytes(slot.child_pid), _peak_bytes(os.getpid())
        frames = sum(len(chunk.frame_index) for chunk in slot.chunks(hour))
        assert frames == (90000 if fps is None else 3600)
        assert _peak_bytes(slot.child_pid) < base + (GROWTH_MB[decoder] << 20)
        assert _peak_bytes(os.getpid()) < own + (300 << 20)


def _peak_bytes(pid):
    """The highest resident memory so far (VmHWM)."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _cheap(number, width_px, height_px):
    """A picture that is quickly drawn: a band that moves."""
    picture = np.full((height_px, width_px, 3), 90, dtype=np.uint8)
    picture[(number * 8) % (height_px - 40) :][:40] = (200, 150, 120)
    return picture
