"""The node: pictures of a camera in, vision_msgs/Detection2DArray out.

Subscribes to `image` (sensor_msgs/Image, or CompressedImage with the parameter `compressed`) and to `~/phrase`
(std_msgs/String: phrases, divided by semicolons, that are found from then on). Publishes `~/detections` with the stamp
and frame of the picture, also where nothing is found.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import rclpy
from geometry_msgs.msg import Point, Pose, PoseWithCovariance, Quaternion
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
)

from edgetune_ros.convert import detections
from edgetune_ros.topic import RosPicture, Topic
from edgetune_runtime.errors import EdgetuneError, InputError
from edgetune_runtime.live.watch import Watcher
from edgetune_runtime.session import Session

TYPES = SimpleNamespace(
    BoundingBox2D=BoundingBox2D,
    Detection2D=Detection2D,
    Detection2DArray=Detection2DArray,
    ObjectHypothesis=ObjectHypothesis,
    ObjectHypothesisWithPose=ObjectHypothesisWithPose,
    Point=Point,
    Point2D=Point2D,
    Pose=Pose,
    Pose2D=Pose2D,
    PoseWithCovariance=PoseWithCovariance,
    Quaternion=Quaternion,
)


class Grounding(Node):
    """Watches a topic with a bundle.

    Parameters of the node: `bundle` (folder), `phrases` (list of texts), `device`, `threads` (0: the engine's choice),
    `every` (least seconds between two answers), `track` (carry boxes on by optical flow), `compressed`.
    """

    def __init__(self) -> None:
        super().__init__("edgetune")
        ask = self.declare_parameter
        bundle, phrases = ask("bundle", "").value, ask("phrases", ["the red cup"]).value
        device, threads = ask("device", "cpu").value, ask("threads", 0).value
        every, track, compressed = ask("every", 0.0).value, ask("track", False).value, ask("compressed", False).value
        if not bundle:
            raise InputError("the parameter bundle names no folder", hint="--ros-args -p bundle:=/path/to/bundle")
        self._session = Session.load(bundle, device=device, threads=threads or None, cached_images=0)
        self._topic = Topic("image")
        tell = self.get_logger().info
        self._watcher = Watcher(self._session, self._topic, phrases, every=every, track=track, tell=tell)
        self._publisher = self.create_publisher(Detection2DArray, "~/detections", 10)
        self.create_subscription(
            CompressedImage if compressed else Image, "image", self._topic.push, qos_profile_sensor_data
        )
        self.create_subscription(String, "~/phrase", self._ask_for, 10)
        self.add_on_set_parameters_callback(self._set)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def _ask_for(self, message: String) -> None:
        """Other phrases from now on."""
        try:
            self._watcher.phrases = [part.strip() for part in message.data.split(";") if part.strip()]
        except InputError as error:
            self.get_logger().error(f"the phrases stay as they are: {error}")

    def _set(self, parameters: list[Parameter]) -> SetParametersResult:
        """The parameter `phrases` may be set while the node runs, the others not."""
        for parameter in parameters:
            if parameter.name != "phrases":
                return SetParametersResult(successful=False, reason=f"{parameter.name} is read at the start alone")
            try:
                self._watcher.phrases = parameter.value
            except InputError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True, reason="")

    def _watch(self) -> None:
        try:
            for observation in self._watcher:
                assert isinstance(observation.frame.picture, RosPicture)
                self._publisher.publish(detections(observation, observation.frame.picture.header, TYPES))
        except Exception as error:  # a node whose thread has ended would wait for nothing
            if rclpy.ok():
                self.get_logger().fatal(f"{type(error).__name__}: {error}")
                rclpy.try_shutdown()

    def destroy_node(self) -> None:
        """End the watch, then the node."""
        self._watcher.stop()
        self._thread.join()
        self._session.close()
        super().destroy_node()


def main() -> None:
    """Run the node until it is told to end."""
    rclpy.init()
    try:
        node = Grounding()
    except EdgetuneError as error:
        raise SystemExit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else "")) from error
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
