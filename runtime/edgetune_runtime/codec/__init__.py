"""The one codec between boxes in pixels and the text that a model reads and writes."""
