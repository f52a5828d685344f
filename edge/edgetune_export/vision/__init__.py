"""The vision tower as a graph: the exportable wrapper, its export, int8 products, TensorRT."""
