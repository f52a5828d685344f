"""What is wrong with a data set: every error with its file and line, and warnings about what trains badly."""

from __future__ import annotations

from edgetune_data.check.findings import Finding, Report
from edgetune_data.check.material import Material
from edgetune_data.check.run import check, gather
from edgetune_data.settings import CheckLimits

__all__ = ["CheckLimits", "Finding", "Material", "Report", "check", "gather"]
