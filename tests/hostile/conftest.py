"""Profiles: `make fuzz` runs the generators of this folder for long, the ordinary suite for a moment."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
