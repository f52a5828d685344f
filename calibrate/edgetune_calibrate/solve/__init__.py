"""Solve a linear's int4 codes from its weight and the second moments of its input.

`solve_group(group, settings)` is the one entry for a group of linears that share an input; `search_factors` gives the
factors that AWQ moves into a group's weights before. Both know tensors only, no model.
"""

from __future__ import annotations

from edgetune_calibrate.solve.awq import search_factors
from edgetune_calibrate.solve.problem import LinearGroup, Method, SolveSettings
from edgetune_calibrate.solve.solver import solve_group

__all__ = ["LinearGroup", "Method", "SolveSettings", "search_factors", "solve_group"]
