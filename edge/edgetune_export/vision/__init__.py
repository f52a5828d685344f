"""The vision tower as a graph: its layout, attention, layers, int8 products, TensorRT."""
