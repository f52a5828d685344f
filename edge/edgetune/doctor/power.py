"""What this machine tells of energy, temperatures and clocks, all of which stand in the rows of `edgetune bench`."""

from __future__ import annotations

from pathlib import Path

from edgetune_runtime.bench.power import conditions, supplies
from edgetune_runtime.bench.power.supplies import Finding
from edgetune_runtime.gpu import Gpu


def describe_power(root: Path = Path("/")) -> list[Finding]:
    """Read every source once, and return what it tells, or why it does not.

    Args:
        root: folder in which sys/, etc/ and var/ are.
    """
    gpu = Gpu()
    return [*supplies.find(root, gpu).findings, *conditions.findings(conditions.look(root, gpu), root)]
