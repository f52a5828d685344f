"""How colcon builds and installs the node."""

from setuptools import setup

setup(
    name="edgetune_ros",
    version="0.1.0",
    packages=["edgetune_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/edgetune_ros"]),
        ("share/edgetune_ros", ["package.xml"]),
    ],
    install_requires=["setuptools", "edgetune-runtime[onnx]"],
    entry_points={"console_scripts": ["grounding = edgetune_ros.node:main"]},
)
