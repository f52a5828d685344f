from array import array

from std_msgs.msg import Header

class Image:
    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: array[int]

class CompressedImage:
    header: Header
    format: str
    data: array[int]
