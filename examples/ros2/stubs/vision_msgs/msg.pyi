from geometry_msgs.msg import PoseWithCovariance
from std_msgs.msg import Header

class Point2D:
    def __init__(self, *, x: float, y: float) -> None: ...

class Pose2D:
    def __init__(self, *, position: Point2D, theta: float) -> None: ...

class BoundingBox2D:
    def __init__(self, *, center: Pose2D, size_x: float, size_y: float) -> None: ...

class ObjectHypothesis:
    def __init__(self, *, class_id: str, score: float) -> None: ...

class ObjectHypothesisWithPose:
    def __init__(self, *, hypothesis: ObjectHypothesis, pose: PoseWithCovariance) -> None: ...

class Detection2D:
    def __init__(
        self, *, header: Header, results: list[ObjectHypothesisWithPose], bbox: BoundingBox2D, id: str
    ) -> None: ...

class Detection2DArray:
    def __init__(self, *, header: Header, detections: list[Detection2D]) -> None: ...
