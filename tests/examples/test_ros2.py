"""The ROS 2 example on a real bag: messages in CDR, written and read by `rosbags`, through the node's own code.

What needs rclpy is type-checked against stubs and not run here.
"""

from __future__ import annotations

import threading
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from edgetune_ros.convert import detections, picture
from edgetune_ros.topic import RosPicture, Topic
from edgetune_runtime.errors import ImageError
from edgetune_runtime.live.watch import Watcher
from edgetune_runtime.session import Session

# The definitions of vision_msgs 4, of which rosbags has none.
VISION = {
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id\n",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}
STORE = get_typestore(Stores.ROS2_HUMBLE)
for _name, _text in VISION.items():
    STORE.register(get_types_from_msg(_text, f"vision_msgs/msg/{_name}"))


def kind(name: str) -> Any:
    return STORE.types[name]


TYPES = SimpleNamespace(
    **{name: kind(f"vision_msgs/msg/{name}") for name in VISION},
    **{name: kind(f"geometry_msgs/msg/{name}") for name in ("Point", "Pose", "PoseWithCovariance", "Quaternion")},
)


def header(number: int) -> Any:
    stamp = kind("builtin_interfaces/msg/Time")(sec=1_700_000_000 + number, nanosec=987_654_321)
    return kind("std_msgs/msg/Header")(stamp=stamp, frame_id="camera_optical_frame")


def image(pixels: Any, encoding: str, *, number: int = 0, padding: int = 0) -> Any:
    """A sensor_msgs/Image of pixels [H, W, bytes], its rows padded."""
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)))
    return kind("sensor_msgs/msg/Image")(
        header=header(number),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.ravel(),
    )


def through_cdr(message: Any, name: str) -> Any:
    return STORE.deserialize_cdr(STORE.serialize_cdr(message, name), name)


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        ("rgb8", None),
        ("bgr8", cv2.COLOR_RGB2BGR),
        ("8UC3", cv2.COLOR_RGB2BGR),
        ("8UC4", cv2.COLOR_RGB2BGRA),
        ("8UC1", cv2.COLOR_RGB2GRAY),
        ("rgba8", cv2.COLOR_RGB2RGBA),
        ("bgra8", cv2.COLOR_RGB2BGRA),
        ("mono8", cv2.COLOR_RGB2GRAY),
    ],
)
def test_pictures_are_read_as_opencv_writes_them(encoding: str, code: int | None) -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (6, 10, 3), np.uint8)
    pixels = rgb if code is None else cv2.cvtColor(rgb, code)
    pixels = pixels.reshape(6, 10, -1)
    for padding in (0, 7):
        read = picture(through_cdr(image(pixels, encoding, padding=padding), "sensor_msgs/msg/Image"))
        expected = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else rgb
        assert np.array_equal(np.asarray(read), expected)


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        ("yuv422", cv2.COLOR_YUV2RGB_UYVY),
        ("uyvy", cv2.COLOR_YUV2RGB_UYVY),
        ("yuv422_yuy2", cv2.COLOR_YUV2RGB_YUY2),
        ("yuyv", cv2.COLOR_YUV2RGB_YUY2),
    ],
)
def test_pictures_of_plain_webcams_are_read_as_opencv_reads_them(encoding: str, code: int) -> None:
    pixels = np.random.default_rng(2).integers(16, 235, (8, 12, 2), np.uint8)
    read = np.asarray(picture(image(pixels, encoding)), int)
    assert np.abs(read - cv2.cvtColor(pixels, code)).max() <= 2


def test_a_picture_that_is_none_is_refused() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ImageError, match="16UC1"):
        picture(image(pixels, "16UC1"))
    short = image(pixels, "rgb8")
    short.height = 5
    with pytest.raises(ImageError, match="no picture of 4x5"):
        picture(short)


def replayed(session: Session, name: str, messages: list[Any], phrase: str) -> list[bytes]:
    """The answers to messages that come one by one, as they would be published."""
    topic = Topic(name)
    watcher, answers, answered = Watcher(session, topic, [phrase]), list[bytes](), threading.Semaphore(0)

    def publish() -> None:
        for observation in watcher:
            assert isinstance(observation.frame.picture, RosPicture)
            message = detections(observation, observation.frame.picture.header, TYPES)
            answers.append(bytes(STORE.serialize_cdr(message, "vision_msgs/msg/Detection2DArray")))
            answered.release()

    thread = threading.Thread(target=publish)
    thread.start()
    for message in messages:
        topic.push(message)
        assert answered.acquire(timeout=60)
    topic.close()
    thread.join(60)
    return answers


def test_a_bag_is_answered_with_the_stamps_of_its_pictures(
    tiny_bundle: Path, tiny_scenes: Path, tmp_path: Path
) -> None:
    """Written bag, real CDR, the node's code, and the answers' bytes."""
    from served import questions

    asked = questions(tiny_scenes)[:3]
    names = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = [writer.add_connection(f"/camera/{n}", name, typestore=STORE) for n, name in enumerate(names)]
        for number, (encoded, _) in enumerate(asked):
            pixels = np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))
            raw = image(pixels, "rgb8", number=number)
            packed = kind(names[1])(header=header(number), format="jpeg", data=np.frombuffer(encoded, np.uint8))
            for topic, message, name in zip(topics, (raw, packed), names, strict=True):
                writer.write(topic, number, STORE.serialize_cdr(message, name))

    phrase = asked[0].phrase
    with Session.load(tiny_bundle, threads=1, cached_images=0) as session, Reader(tmp_path / "bag") as reader:
        expected = [session.ground(encoded, phrase) for encoded, _ in asked]
        for connection in reader.connections:
            messages = [STORE.deserialize_cdr(data, connection.msgtype) for _, _, data in reader.messages([connection])]
            answers = replayed(session, connection.topic, messages, phrase)
            assert len(answers) == len(asked)
            for number, (data, boxes) in enumerate(zip(answers, expected, strict=True)):
                told: Any = STORE.deserialize_cdr(data, "vision_msgs/msg/Detection2DArray")
                assert told.header == header(number)
                assert len(told.detections) == len(boxes)
                for detection, box in zip(told.detections, boxes, strict=True):
                    middle, size = detection.bbox.center.position, (detection.bbox.size_x, detection.bbox.size_y)
                    x1, y1, x2, y2 = box.box
                    assert (middle.x - size[0] / 2, middle.y - size[1] / 2) == pytest.approx((x1, y1))
                    assert (middle.x + size[0] / 2, middle.y + size[1] / 2) == pytest.approx((x2, y2))
                    (result,) = detection.results
                    assert (result.hypothesis.class_id, detection.id) == (phrase, "answered")
                    assert result.hypothesis.score == pytest.approx(box.score)


def test_the_newest_picture_of_a_topic_wins() -> None:
    topic = Topic("image")
    for number in range(5):
        topic.push(image(np.full((4, 4, 3), number, np.uint8), "rgb8", number=number))
    shots = topic.shots()
    newest: Any = next(shots)
    assert newest.picture.header == header(4)
    assert time.monotonic() - newest.captured < 5
    topic.push(image(np.zeros((4, 4, 3), np.uint8), "32FC1"))
    fault: Any = next(shots)
    assert "32FC1" in fault.problem
    topic.close()
    assert list(shots) == []
