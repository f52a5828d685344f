"""A ROS 2 node that finds what phrases name in a camera's pictures."""
