"""Only known containers in regular local files pass; nothing that points elsewhere is followed."""

import contextlib
import os
import socket
import struct
import threading

import odd_videos as odd
import pytest

from mma.video.container import sniff
from mma.video.errors import VideoError
from mma.video.readers import open_video


@pytest.mark.parametrize(
    ("file", "settings", "container"),
    [
        ("a.mp4", {}, "mov"),
        ("a.mkv", {}, "matroska"),
        ("a.webm", {"codec": "libvpx"}, "matroska"),
        ("a.avi", {"b_frames": 0}, "avi"),
        ("a.ts", {}, "mpegts"),
        ("a.mpg", {"codec": "mpeg2video", "fps": 25}, "mpeg"),
        ("a.flv", {}, "flv"),
        ("a.wmv", {"codec": "wmv2"}, "asf"),
    ],
)
def test_containers_are_known_by_their_first_bytes_whatever_the_name(file, settings, container, tmp_path):
    path = odd.write_clip(tmp_path / file, frames=3, **settings)
    misnamed = path.rename(tmp_path / "a.jpg")
    assert sniff(misnamed) == container
    assert len(list(open_video(misnamed).frames(range(3)))) == 3


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:5,\n{victim}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{victim}'\n",
        "http://127.0.0.1:{port}/a.mp4",
        "[InternetShortcut]\nURL=http://127.0.0.1:{port}/a.mp4\n",
        "<html><body><video src='http://127.0.0.1:{port}/a.mp4'></body></html>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_lists_and_addresses_are_refused_and_nobody_is_called(text, decoder, tmp_path):
    victim = tmp_path / "victim.ts"
    os.mkfifo(victim)
    with Listeners(victim) as listeners:
        path = tmp_path / "innocent.mp4"
        path.write_text(text.format(victim=victim, port=listeners.port))
        with pytest.raises(VideoError) as caught:
            open_video(path, decoder=decoder)
        assert (caught.value.stage, caught.value.error_type) == ("sniff", "NotAVideo")
        assert listeners.called == []


def test_a_quicktime_reference_movie_opens_no_other_file(tmp_path):
    """The samples are said to lie in another file (a `dref` entry of type alis with an absolute path)."""
    victim = tmp_path / "victim.mov"
    os.mkfifo(victim)
    path = odd.write_clip(tmp_path / "a.mov", frames=5)
    data = path.read_bytes()
    name = str(victim).encode()
    record = struct.pack(">IH", 0, 150) + b"\x00" * 144  # the fixed part of an alias record
    record += struct.pack(">hh", 2, len(name)) + name + b"\x00" * (len(name) % 2) + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    old = data[data.index(b"dref") - 4 :][: struct.unpack(">I", data[data.index(b"dref") - 4 :][:4])[0]]
    new = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    grown = data.replace(old, new)
    for box in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = grown.index(box, data.index(b"moov")) - 4
        size = struct.unpack(">I", grown[at : at + 4])[0] + len(new) - len(old)
        grown = grown[:at] + struct.pack(">I", size) + grown[at + 4 :]
    path.write_bytes(grown)
    with Listeners(victim) as listeners:
        for decoder in ("auto", "pyav"):
            with contextlib.suppress(VideoError):  # refused or read from its own bytes, either is well
                list(open_video(path, decoder=decoder).frames(range(5)))
        assert listeners.called == []


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    (tmp_path / "link.mp4").symlink_to(pipe)
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "absent.mp4")
    for path in (pipe, tmp_path / "link.mp4", tmp_path / "nowhere.mp4", tmp_path, "/dev/zero", "http://127.0.0.1:9/a"):
        with pytest.raises(VideoError) as caught:
            sniff(path)
        assert caught.value.stage == "sniff"


def test_a_link_to_a_video_and_odd_names_pass(tmp_path):
    path = odd.write_clip(tmp_path / "concat:a%03d b\nü.mp4", frames=2)
    (tmp_path / "link.mp4").symlink_to(path)
    for name in (path, tmp_path / "link.mp4"):
        assert len(list(open_video(name).frames(range(2)))) == 2


def test_messages_are_one_short_line_without_a_path(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 9)
    with pytest.raises(VideoError) as caught:
        open_video(path)
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in VideoError("open", "X", "a\nb" * 900).message
    assert len(VideoError("open", "X", "a\nb" * 900).message) == 500


class Listeners:
    """A server and the writing end of a named pipe: `called` tells who came."""

    def __init__(self, pipe):
        self.pipe, self.called = pipe, []

    def __enter__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()
        return self

    def _accept(self):
        try:
            connection, _ = self.server.accept()
        except OSError:  # closed
            return
        self.called.append("server")
        connection.close()

    def __exit__(self, *_):
        try:  # opening for writing without waiting works only while somebody has the pipe open for reading
            os.close(os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK))
            self.called.append("pipe")
        except OSError:
            pass
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join()
