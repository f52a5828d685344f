"""A bundle in front of a camera: frames in, boxes out while they are fresh."""
