"""The decoder as a graph of our own: weights, linear layers, and one operator vocabulary a dialect."""
