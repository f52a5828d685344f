"""Checkpoints under torch, behind the runner that bundles have too."""
