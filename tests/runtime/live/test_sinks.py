from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.events import Event, Events
from edgetune_runtime.live.frames import Frame, StillPicture
from edgetune_runtime.live.observations import Observation, Seen
from edgetune_runtime.live.sinks import Snapshots, annotated
from edgetune_runtime.live.sinks.mcap import Mcap
from edgetune_runtime.live.sinks.mqtt import PASSWORD, Mqtt
from edgetune_runtime.live.sinks.video import Video
from edgetune_runtime.live.sinks.webhook import Webhook
from live import number_of, plain

BOX = (8.0, 8.0, 40.5, 32.25)


def observation(number: int, *, tracked: bool = False, phrase: str = "a cup") -> Observation:
    """A cup in a picture that tells its number, every 40 ms."""
    stamp = 1_790_000_000_123_456_789 + number * 40_000_000
    frame = Frame(number, StillPicture(plain(number)), 100.0 + number * 0.04, stamp)
    seen = Seen(phrase, "the cup", BOX, 0.75, "tracked" if tracked else "answered", 0.5 if tracked else 0.1)
    return Observation(frame, (seen,), {phrase: "found", "a jar": "refused"}, not tracked, 0.1)


def event(number: int, phrase: str = "a cup") -> Event:
    (found,) = Events(["found"]).of(observation(number, phrase=phrase))
    return found


def test_a_video_holds_the_frames_at_their_times(tmp_path: Path) -> None:
    for name in ("out.mp4", "out.mkv"):
        sink = Video(tmp_path / name)
        for number in (0, 1, 2, 5, 4, 6):  # an answer about frame 4 comes when frame 5 was shown already
            sink.write(observation(number, tracked=number % 2 == 1))
        sink.close()
        with av.open(str(tmp_path / name)) as container:
            frames = list(container.decode(video=0))
        assert [number_of(Image.fromarray(frame.to_ndarray(format="rgb24"))) for frame in frames] == [0, 1, 2, 5, 6]
        times = [frame.time or 0.0 for frame in frames]
        assert np.diff(times) == pytest.approx([0.04, 0.04, 0.12, 0.04], abs=0.002)
        ink = np.asarray(frames[0].to_ndarray(format="rgb24"))[8, 20]
        assert ink[0] > 150 and ink[2] < 100, "the box is not drawn"


def test_a_video_that_was_not_finished_plays(tmp_path: Path) -> None:
    """What a process that was killed has left."""
    for name in ("out.mp4", "out.mkv"):
        sink = Video(tmp_path / name)
        for number in range(150):
            sink.write(observation(number))
        shutil.copy(tmp_path / name, tmp_path / f"copy-{name}")
        sink.close()
        with av.open(str(tmp_path / f"copy-{name}")) as container:
            assert len(list(container.decode(video=0))) >= 30


def test_an_mcap_file_has_pictures_and_boxes_as_foxglove_defines_them(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    sink = Mcap(path)
    for number in range(3):
        sink.write(observation(number, tracked=number == 1))
        sink.tell(event(number))
    sink.close()
    found: dict[str, list[Any]] = {}
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        assert summary is not None
        names = {channel.topic: summary.schemas[channel.schema_id].name for channel in summary.channels.values()}
        assert names["/camera/image"] == "foxglove.CompressedImage"
        assert names["/camera/boxes"] == "foxglove.ImageAnnotations"
        for _, channel, message, decoded in reader.iter_decoded_messages(["/camera/image", "/camera/boxes"]):
            assert message.log_time == observation(len(found.get(channel.topic, []))).frame.stamp
            found.setdefault(channel.topic, []).append(decoded)
        stream.seek(0)
        lines = [json.loads(message.data) for _, _, message in reader.iter_messages(["/edgetune/observations"])]
        events = [json.loads(message.data) for _, _, message in reader.iter_messages(["/edgetune/events"])]
    assert lines == [observation(number, tracked=number == 1).to_dict() for number in range(3)]
    assert [entry["event"] for entry in events] == ["found"] * 3
    for number, (image, boxes) in enumerate(zip(found["/camera/image"], found["/camera/boxes"], strict=True)):
        assert number_of(Image.open(BytesIO(image.data))) == number and image.format == "jpeg"
        stamp = observation(number).frame.stamp
        assert image.timestamp.ToNanoseconds() == stamp
        (points,) = MessageToDict(boxes)["points"]
        corners = [(point.get("x", 0.0), point.get("y", 0.0)) for point in points["points"]]
        assert corners == [(8.0, 8.0), (40.5, 8.0), (40.5, 32.25), (8.0, 32.25)]
        assert points["type"] == "LINE_LOOP"
        told = {pair["key"]: pair["value"] for pair in points["metadata"]}
        assert (told["phrase"], told["source"]) == ("a cup", "tracked" if number == 1 else "answered")
    with pytest.raises(InputError, match="exists already"):
        Mcap(path)


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    for make, name in ((Video, "film.mp4"), (Mcap, "film.mcap")):
        (tmp_path / name).write_bytes(b"precious")
        with pytest.raises(InputError, match="exists already"):
            make(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"precious"


def test_nothing_is_left_where_nothing_was_seen(tmp_path: Path) -> None:
    for make, name in ((Video, "film.mp4"), (Mcap, "film.mcap")):
        make(tmp_path / name).close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    code = """
import errno, resource, signal, sys
from pathlib import Path
from runtime.live.test_sinks import Mcap, Video, observation
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sink = (Mcap if sys.argv[1].endswith("mcap") else Video)(Path(sys.argv[1]))
try:
    for number in range(4000):
        sink.write(observation(number % 256 + 256 * number))
    sink.close()
except OSError as error:
    sys.exit(0 if error.errno == errno.EFBIG else repr(error))
sys.exit("nothing was said")
"""
    for name in ("out.mcap", "out.mkv"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
        words = [sys.executable, "-c", code, str(tmp_path / name)]
        root = Path(__file__).resolve().parents[3]
        done = subprocess.run(words, capture_output=True, text=True, cwd=root, env=environment, check=False)
        assert done.returncode == 0, name + done.stderr


def test_snapshots_go_on_counting_when_the_clock_is_set_back(tmp_path: Path) -> None:
    sink = Snapshots(tmp_path, keep=2)
    for number in (3, 4):
        sink.tell(event(number))
    (tmp_path / "left.part").write_bytes(b"half")
    again = Snapshots(tmp_path, keep=2)
    again.tell(event(-20_000_000_000))  # in 2001
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[-1].startswith("00000003_2001")


def test_snapshots_are_kept_up_to_a_number_and_are_whole(tmp_path: Path) -> None:
    sink = Snapshots(tmp_path / "seen", keep=3)
    for number in range(5):
        sink.tell(event(number, "../a cup"))
    names = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert len(names) == 3 and list(tmp_path.iterdir()) == [tmp_path / "seen"]
    assert [number_of(Image.open(tmp_path / "seen" / name)) for name in names] == [2, 3, 4]
    assert names[0].startswith("00000003_") and all(name.endswith("Z_found____a_cup.jpg") for name in names)


@pytest.mark.parametrize("name", ["out.avi", "out", "missing/out.mp4"])
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        Video(tmp_path / name)
    with pytest.raises(InputError):
        Mcap(tmp_path / name)


def test_a_tracked_box_is_drawn_with_its_age() -> None:
    fresh, carried = annotated(observation(0)), annotated(observation(0, tracked=True))
    assert fresh.size == carried.size == (64, 64)
    assert np.any(np.asarray(fresh) != np.asarray(carried))


class Receiver:
    """An HTTP server that answers with the statuses of a list, then with 204."""

    def __init__(self, *statuses: int) -> None:
        left = list(statuses)
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str | None] = []
        bodies, asked = self.bodies, self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = left.pop(0) if left else 204
                if status < 300:
                    bodies.append(json.loads(body))
                    asked.append(self.headers["authorization"])
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/events"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait_until(done: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.02)
    assert done()


def test_a_webhook_gets_each_event_in_order_although_it_fails_at_first() -> None:
    receiver = Receiver(500)
    sink = Webhook(receiver.url)
    for number in range(3):
        sink.tell(event(number))
    wait_until(lambda: sink.sent == 3)
    sink.close()
    receiver.close()
    assert receiver.bodies == [event(number).to_dict() for number in range(3)]
    assert sink.lost == 0


def test_a_webhook_that_refuses_is_told_of_and_others_follow() -> None:
    receiver, told = Receiver(404), list[str]()
    sink = Webhook(receiver.url, tell=told.append)
    sink.tell(event(0))
    sink.tell(event(1))
    wait_until(lambda: sink.sent == 1 and sink.lost == 1)
    sink.close()
    receiver.close()
    assert len(told) == 1 and "status 404" in told[0]
    for address in ("ftp://host/", "nonsense", "http:///"):
        with pytest.raises(InputError):
            Webhook(address)


def test_a_redirect_is_no_delivery() -> None:
    receiver, told = Receiver(302), list[str]()
    sink = Webhook(receiver.url, tell=told.append)
    sink.tell(event(0))
    wait_until(lambda: sink.lost == 1)
    sink.close()
    receiver.close()
    assert sink.sent == 0 and "status 302" in told[0]


def test_a_webhook_gives_the_password_to_the_receiver_and_to_nobody_else() -> None:
    receiver, told = Receiver(), list[str]()
    sink = Webhook(receiver.url.replace("http://", "http://user:s3cret@"), tell=told.append)
    sink.tell(event(0))
    wait_until(lambda: sink.sent == 1)
    receiver.close()
    sink.tell(event(1))  # nobody is there any more
    sink.close()
    assert receiver.asked == ["Basic " + base64.b64encode(b"user:s3cret").decode()]
    assert sink.lost == 1 and len(told) == 1 and "s3cret" not in told[0]


def test_a_receiver_that_answers_nonsense_ends_no_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def nonsense() -> None:
            for _ in range(10):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"what?\r\n\r\n")

        threading.Thread(target=nonsense, daemon=True).start()
        told: list[str] = []
        sink = Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", tell=told.append)
        sink.tell(event(0))
        time.sleep(0.5)
        sink.close()
    assert sink.lost == 1 and "BadStatusLine" in told[0]


def test_of_many_events_that_wait_the_oldest_are_given_up() -> None:
    told: list[str] = []
    sink = Webhook("http://127.0.0.1:9/", tell=told.append)
    for number in range(230):
        sink.tell(event(number))
    sink.close()
    assert sink.sent == 0 and sink.lost == 230
    assert any("the oldest is given up" in words for words in told)
    assert "events were not delivered" in told[-1]


class Broker:
    """A real broker that asks for a password, and keeps what a listener has not heard yet."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "accounts").write_text("camera:p@ss\n")
        subprocess.run([shutil.which("mosquitto_passwd") or "mosquitto_passwd", "-U", folder / "accounts"], check=True)
        (folder / "accounts").chmod(0o644)
        settings = f"listener {self.port} 127.0.0.1\npassword_file {folder}/accounts\nuser root\n"
        (folder / "conf").write_text(settings + "max_queued_messages 0\n")
        self._words = [program, "-c", str(folder / "conf")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def listen(self, take: Callable[[str, bytes], None], topic: str) -> paho.Client:
        """A client that has subscribed."""
        listener = paho.Client(CallbackAPIVersion.VERSION2)
        listener.username_pw_set("camera", "p@ss")
        listener.on_message = lambda client, data, message: take(message.topic, bytes(message.payload))
        ready = threading.Event()
        listener.on_subscribe = lambda *arguments: ready.set()
        listener.connect("127.0.0.1", self.port)
        listener.subscribe(topic, qos=1)
        listener.loop_start()
        assert ready.wait(10)
        return listener


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """One that runs."""
    program = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
    if program is None:
        pytest.skip("needs mosquitto")
    running = Broker(program, tmp_path)
    running.start()
    yield running
    running.stop()


def test_a_broker_gets_observations_and_events(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bytes]] = []
    listener = broker.listen(lambda topic, payload: seen.append((topic, payload)), "#")
    with pytest.raises(InputError, match="refuses") as caught:
        Mqtt(f"mqtt://camera:wrong@127.0.0.1:{broker.port}/gate")
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv(PASSWORD, "p@ss")
    sink = Mqtt(f"mqtt://camera@127.0.0.1:{broker.port}/gate/north")
    sink.write(observation(1))
    sink.tell(event(1))
    sink.close()
    wait_until(lambda: len(seen) >= 4)
    listener.disconnect()
    listener.loop_stop()
    topics = [topic for topic, _ in seen]
    assert topics[0] == topics[-1] == "gate/north/status"
    assert [payload for topic, payload in seen if topic.endswith("status")] == [b"online", b"offline"]
    told = {topic: json.loads(payload) for topic, payload in seen if not topic.endswith("status")}
    assert told["gate/north/observations"] == observation(1).to_dict()
    assert told["gate/north/events"] == event(1).to_dict()


def test_a_broker_that_goes_away_gets_the_events_when_it_is_back(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "p@ss")
    told: list[str] = []
    sink = Mqtt(f"mqtt://camera@127.0.0.1:{broker.port}/gate", tell=told.append)
    broker.stop()
    wait_until(lambda: bool(told))
    for number in range(210):
        sink.write(observation(number))
        sink.tell(event(number))
    kept = 210 - sink.lost
    assert sink.dropped == 210 and kept in (199, 200)  # "online" may wait as well
    seen: list[int] = []
    broker.start()
    listener = broker.listen(lambda topic, payload: seen.append(json.loads(payload)["frame"]), "gate/events")
    wait_until(lambda: len(seen) >= kept, 60)
    sink.close()
    listener.disconnect()
    listener.loop_stop()
    assert set(seen) == set(range(kept)) and sink.lost == 210 - kept
    assert "the broker is gone" in told[0] and "there again" in told[-1]


@pytest.mark.parametrize("address", ["mqtt://host", "mqtt://host/#", "http://host/topic", "mqtt://host:x/topic"])
def test_an_mqtt_address_has_a_topic(address: str) -> None:
    with pytest.raises(InputError):
        Mqtt(address)


def test_a_broker_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match="cannot connect"):
        Mqtt("mqtt://127.0.0.1:9/gate")
