"""Solve a linear's int4 codes from its weight and the second moments of its input.

`solve_group(group, settings)` is the one entry for a group of linears that share an input; it knows tensors only, no
model. AWQ also moves scales between the layers of a block, see `edgetune_calibrate.solve.awq`.
"""

from __future__ import annotations

from edgetune_calibrate.solve.problem import LinearGroup, Method, SolveSettings
from edgetune_calibrate.solve.solver import solve_group

__all__ = ["LinearGroup", "Method", "SolveSettings", "solve_group"]
