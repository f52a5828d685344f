"""Bundles of TensorRT engines, which are built on the device that runs them."""
