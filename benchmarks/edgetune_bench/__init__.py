"""Measure bundles and checkpoints on the same samples: one process each, paired statistics, tables and pages."""
