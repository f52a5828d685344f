"""Self-checks of an export: the reference under transformers, parity of the graphs, drift of the boxes."""
