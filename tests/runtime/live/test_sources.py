from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.addresses import shown
from edgetune_runtime.live.capture import Capture
from edgetune_runtime.live.sources import Fault, Shot, SourceError, SourceOptions, source_of
from live import number_of, plain, video

gstreamer = pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="needs gst-launch-1.0")


def shots(text: str, wishes: SourceOptions | None = None) -> list[Shot]:
    return [shot for shot in source_of(text, wishes).shots() if isinstance(shot, Shot)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("clip") / "clip.mp4", [plain(number) for number in range(40)], rate=20)


def test_a_video_gives_every_frame_once_in_order_and_its_time(clip: Path) -> None:
    found = shots(str(clip))
    assert [number_of(shot.picture.rgb()) for shot in found] == list(range(40))
    assert [shot.media_time for shot in found] == pytest.approx([number / 20 for number in range(40)])
    assert not source_of(str(clip)).live


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_video_of_a_phone_that_was_held_upright_is_turned_as_players_turn_it(tmp_path: Path, quarters: int) -> None:
    """The matrix in the track's header says how a video is to be shown: ISO/IEC 14496-12, 8.3.2."""
    picture = Image.new("RGB", (96, 64), "black")
    picture.paste((255, 0, 0), (0, 0, 24, 16))  # the corner where reading begins, as it is stored
    path = video(tmp_path / "turned.mp4", [picture] * 3)
    one, matrices = 1 << 16, {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}
    a, b, c, d = (value * one for value in matrices[quarters])  # clockwise quarters
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    content[at : at + 36] = values.tobytes()
    path.write_bytes(bytes(content))
    (first, *_) = shots(str(path))
    shown = picture.rotate(-90 * quarters, expand=True)
    assert first.picture.size == shown.size
    assert np.abs(np.asarray(first.picture.rgb(), int) - np.asarray(shown, int)).mean() < 8
    gray = first.picture.gray((shown.width // 2, shown.height // 2))
    expected = np.asarray(shown.convert("L").resize((shown.width // 2, shown.height // 2)), int)
    assert gray.shape == expected.shape and np.abs(gray - expected).mean() < 12


def test_a_folder_gives_its_pictures_in_the_order_of_their_numbers_and_tells_of_bad_ones(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        plain(number).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame3.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not looked at")
    found = list(source_of(str(tmp_path), SourceOptions(rate=4.0)).shots())
    assert [number_of(shot.picture.rgb()) if isinstance(shot, Shot) else "bad" for shot in found] == [1, 2, "bad", 10]
    assert [shot.media_time for shot in found if isinstance(shot, Shot)] == [0.0, 0.25, 0.75]
    (fault,) = (shot for shot in found if isinstance(shot, Fault))
    assert "frame3.png" in fault.problem


def test_a_video_that_breaks_off_gives_what_is_whole(clip: Path, tmp_path: Path) -> None:
    """Packets that were overwritten in the middle are faults or shown by the decoder; all that follows comes."""
    content = bytearray(clip.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 60] = bytes(60)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(content))
    found = list(source_of(str(broken)).shots())
    assert any(isinstance(shot, Fault) for shot in found)
    assert number_of([shot for shot in found if isinstance(shot, Shot)][-1].picture.rgb()) == 39


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nowhere.mp4", "no such camera, file or folder"),
        ("ftp://host/film.mp4", "no stream is read by ftp"),
        ("srt://host", "no stream is read by srt"),
        ("rtsp://[fe80::1/x", "no address"),
        ("rtsp://ho st/x", "has no spaces"),
        ("gst:", "names no pipeline"),
        ('gst:videotestsrc pattern="ball', "quotation"),
    ],
)
def test_what_is_no_source_is_refused_at_once(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        source_of(text)
    assert told in f"{caught.value} {caught.value.hint}"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in this folder"):
        source_of(str(tmp_path))


def test_a_camera_that_is_not_there_is_said_to_be_missing() -> None:
    for text in ("99", "/dev/video99"):
        with pytest.raises(SourceError, match="/dev/video99: cannot be opened") as caught:
            list(source_of(text).shots())
        assert "plugged in" in str(caught.value.hint)


def test_what_is_no_video_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("hello")
    with pytest.raises(SourceError, match=r"words\.mp4: cannot be opened"):
        list(source_of(str(tmp_path / "words.mp4")).shots())
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(SourceError, match="there is no video in it"):
        list(source_of(str(tmp_path / "sound.wav")).shots())


def test_a_colon_in_a_name_is_no_protocol(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "2026-11-30T12:00:00.mp4"
    copy.write_bytes(clip.read_bytes())
    assert len(shots(str(copy))) == 40


def test_options_that_a_source_does_not_have_are_refused(clip: Path, tmp_path: Path) -> None:
    for text, options in (
        (str(clip), SourceOptions(rate=5.0)),
        ("0", SourceOptions(transport="udp")),
        ("rtsp://host/a", SourceOptions(size=(640, 480))),
        ("gst:videotestsrc", SourceOptions(pixel_format="mjpeg")),
    ):
        with pytest.raises(InputError, match="this kind of source has no"):
            source_of(text, options)


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:hun/ter2@host/s",
        "rtsp://admin:hun#ter2@host/s",
        "rtsp://host/user=admin&password=ter2&channel=1",
        "rtsp://host/s?token=ter2",
        "rtspsrc location=rtsp://a:ter2@host/s ! decodebin",
        'rtspsrc user-pw="my ter2" ! decodebin',
        "srtsrc passphrase=ter2",
    ],
)
def test_addresses_are_shown_without_secrets(address: str) -> None:
    assert "ter2" not in shown(address)


def test_passwords_are_in_no_message() -> None:
    camera = source_of("rtsp://admin:hunter2@127.0.0.1:9/stream?token=hunter2")
    assert camera.live
    with pytest.raises(SourceError) as caught:
        list(camera.shots())
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {camera.name}"
    pipeline = source_of("gst:rtspsrc location=rtsp://admin:hunter2@host/a user-pw=hunter2 ! decodebin")
    assert "hunter2" not in pipeline.name


@gstreamer
def test_a_gstreamer_pipeline_gives_frames(tmp_path: Path) -> None:
    plain(77).save(tmp_path / "a picture.png")
    text = f'gst:filesrc location="{tmp_path}/a picture.png" ! pngdec ! imagefreeze num-buffers=5'
    numbers = []
    with pytest.raises(SourceError, match="ended"):  # a camera does not end
        for shot in source_of(text).shots():
            assert isinstance(shot, Shot)
            numbers.append(number_of(shot.picture.rgb()))
    assert numbers == [77] * 5


@gstreamer
def test_a_pipeline_that_is_silent_ends_with_who_watched_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Capture(source_of(f"gst:udpsrc port={port} ! rawvideoparse")) as capture:
        assert capture.newest(-1, timeout=1.0) is None
    until = time.monotonic() + 10
    running = ["gst-launch-1.0"]
    while running and time.monotonic() < until:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
        running = [line for line in listed if f"udpsrc port={port}" in line]
        time.sleep(0.1)
    assert not running


@gstreamer
def test_a_pipeline_may_say_as_much_as_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GST_DEBUG", "*:5")  # megabytes, on the error stream
    text = "gst:videotestsrc num-buffers=60 ! video/x-raw,width=64,height=64"
    count = 0
    with pytest.raises(SourceError):
        for _ in source_of(text).shots():
            count += 1
    assert count == 60


@gstreamer
def test_a_pipeline_that_cannot_run_tells_why() -> None:
    with pytest.raises(SourceError, match="nosuchelement"):
        list(source_of("gst:nosuchelement").shots())
