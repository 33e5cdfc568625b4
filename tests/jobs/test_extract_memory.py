"""Memory does not grow with a video's length or a remote file's size."""

import shutil
import struct

import odd_videos
import pytest
from watched import watched, watched_job

from cluster.storage import Folder

WHOLE_FRAME = ("--mma", "random:0:tiny", "--detector", "none")


def padded(source, target, size_bytes: int) -> None:
    """The same mp4 with a `free` box behind it that makes it this large; sparse on disk."""
    shutil.copy(source, target)
    size = target.stat().st_size
    with open(target, "r+b") as file:
        file.seek(size)
        file.write(struct.pack(">I4sQ", 1, b"free", size_bytes - size))
        file.truncate(size_bytes)


def remote_peaks(job, tmp_path, bucket: str, sizes: dict[str, int]) -> dict[str, dict[str, float]]:
    odd_videos.write_clip(tmp_path / "clip.mp4", frames=12)
    folder, peaks = Folder(f"s3://{bucket}/videos"), {}
    for name, size_bytes in sizes.items():
        padded(tmp_path / "clip.mp4", tmp_path / f"{name}.mp4", size_bytes)
        folder.put_file(f"{name}.mp4", tmp_path / f"{name}.mp4")
        uri = f"s3://{bucket}/videos/{name}.mp4"
        with watched() as peaks[name]:
            ran = job("extract", "--videos", uri, "--store", tmp_path / name, *WHOLE_FRAME)
        assert (ran.summary["ok"], ran.summary["frames"]) == (1, 12), ran.told
    return peaks


def assert_no_growth(peaks: dict[str, dict[str, float]], small: str, large: str, allowed_mb: float) -> None:
    assert {"driver", "decode worker", "decoder"} <= set(peaks[small])
    growth = {role: peaks[large].get(role, 0) - peaks[small][role] for role in peaks[small]}
    print(f"peaks in MB: {peaks}; growth: {growth}")
    assert max(growth.values()) < allowed_mb, growth


def test_memory_does_not_grow_with_the_size_of_a_remote_video(job, tmp_path, s3_bucket):
    peaks = remote_peaks(job, tmp_path, s3_bucket, {"warm": 10**6, "small": 10**6, "large": 50 * 10**6})
    # Two or three pieces of 8 MB are held on the way to disk.
    assert_no_growth(peaks, "small", "large", 40)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_remote_video_of_a_gigabyte(job, tmp_path, s3_bucket):
    peaks = remote_peaks(job, tmp_path, s3_bucket, {"warm": 10**6, "small": 10**6, "large": 10**9})
    assert_no_growth(peaks, "small", "large", 60)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("sampling", [("--fps", "1"), ()], ids=["one-frame-a-second", "all-frames"])
def test_an_hour_of_720p_stays_under_base_plus_300_mb_in_every_process(tmp_path, sampling):
    minute, hour = tmp_path / "minute.mp4", tmp_path / "hour.mp4"
    odd_videos.write_clip(minute, frames=60 * 25, fps=25, size_px=(1280, 720), gop=50)
    odd_videos.remux(minute, hour, times=60)
    odd_videos.write_clip(tmp_path / "still.mp4", frames=1, size_px=(1280, 720))
    common = (*WHOLE_FRAME, *sampling, "--num-cpus", 2)
    _, base = watched_job(tmp_path, "extract", "--videos", tmp_path / "still.mp4", "--store", tmp_path / "b", *common)
    summary, peaks = watched_job(tmp_path, "extract", "--videos", hour, "--store", tmp_path / "s", *common)
    assert summary["ok"] == 1
    assert summary["frames"] == (3600 if sampling else 90_000)
    assert summary["units"] == -(-summary["frames"] // 1024)
    assert_no_growth({"base": base, "hour": peaks}, "base", "hour", 300)
