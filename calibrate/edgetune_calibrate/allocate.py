"""Choose the format of each layer: the least error within a size, or the least size within an error, exactly.

Each unit takes one of its choices; sizes and errors add up over units. That is the multiple-choice knapsack problem.
It is solved by dynamic programming over the pairs (size, error) that no other pair of the same units beats in both,
where a Lagrangian bound drops those that cannot lead to the best any more (Kellerer, Pferschy, Pisinger, "Knapsack
Problems", chapter 11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """One way to store a unit.

    Attributes:
        format: of its weights.
        size: bytes.
        error: what it adds to the model's error, at least 0.
    """

    format: BlockFormat
    size: int
    error: float


@dataclass(frozen=True)
class Unit:
    """Linears that share a format, and what each choice of it costs.

    Attributes:
        names: full module names.
        choices: the formats that were tried, with bytes and error.
    """

    names: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Allocation:
    """A format for every linear, and what to expect of them.

    Attributes:
        formats: full module name -> format.
        size: bytes of all of them.
        drift: root of the sum of the units' errors, see `edgetune_calibrate.sensitivity`.
    """

    formats: dict[str, BlockFormat]
    size: int
    drift: float


def plan(units: Sequence[Unit], *, budget: int | None = None, max_drift: float | None = None) -> Allocation:
    """Return formats of least drift within a budget in bytes, or of least size within a drift; exactly one is given.

    Raises:
        InputError: no choice of formats is within it.
    """
    choices = [unit.choices for unit in units]
    if (budget is None) == (max_drift is None):
        raise InputError("a budget and a limit of the drop exclude each other", hint="give one of them")
    picked = within_size(choices, budget) if budget is not None else within_error(choices, (max_drift or 0.0) ** 2)
    return Allocation(
        formats={name: choice.format for unit, choice in zip(units, picked, strict=True) for name in unit.names},
        size=sum(choice.size for choice in picked),
        drift=math.sqrt(sum(choice.error for choice in picked)),
    )


def within_size(units: Sequence[Sequence[Choice]], limit: int) -> list[Choice]:
    """Return a choice for each unit, of least total error among those of at most `limit` bytes.

    Raises:
        InputError: even the smallest choices are larger.
    """
    smallest = sum(min(choice.size for choice in unit) for unit in units)
    if smallest > limit:
        raise InputError(
            f"the layers take {smallest / 1e6:.2f} MB at the fewest bits, more than the budget of {limit / 1e6:.2f} MB",
            hint="raise --budget-mb, or allow fewer --bits or a larger --group-size",
        )
    picked = _least(
        [np.array([choice.error for choice in unit]) for unit in units],
        [np.array([choice.size for choice in unit], float) for unit in units],
        float(limit),
    )
    return [unit[index] for unit, index in zip(units, picked, strict=True)]


def within_error(units: Sequence[Sequence[Choice]], limit: float) -> list[Choice]:
    """Return a choice for each unit, of least total size among those of at most `limit` total error.

    Raises:
        InputError: even the most accurate choices lose more.
    """
    lowest = sum(min(choice.error for choice in unit) for unit in units)
    if lowest > limit:
        raise InputError(
            f"the layers move boxes by {100 * math.sqrt(lowest):.3g} % at the most bits, more than the limit of "
            f"{100 * math.sqrt(limit):.3g} %",
            hint="raise --max-drop, or allow more --bits or a smaller --group-size",
        )
    picked = _least(
        [np.array([choice.size for choice in unit], float) for unit in units],
        [np.array([choice.error for choice in unit]) for unit in units],
        limit,
    )
    return [unit[index] for unit, index in zip(units, picked, strict=True)]


def _least(costs: Sequence[Float], weights: Sequence[Float], limit: float) -> list[int]:
    """Return one index a unit with the least total cost among total weights of at most `limit`, which exist."""
    price, incumbent = _price(costs, weights, limit)
    # The least that the units from i on can add to cost + price · weight.
    rest = np.array([(cost + price * weight).min() for cost, weight in zip(costs, weights, strict=True)])
    rest = np.append(rest[::-1].cumsum()[::-1], 0.0)
    lightest = np.array([weight.min() for weight in weights])
    lightest = np.append(lightest[::-1].cumsum()[::-1], 0.0)
    slack = 1e-9 * (abs(incumbent) + 1e-300)  # sums in another order differ in their last digits
    cost, weight = np.zeros(1), np.zeros(1)
    steps: list[tuple[Index, Index]] = []
    for unit, (more_cost, more_weight) in enumerate(zip(costs, weights, strict=True)):
        parent = np.repeat(np.arange(len(cost)), len(more_cost))
        choice = np.tile(np.arange(len(more_cost)), len(cost))
        cost, weight = cost[parent] + more_cost[choice], weight[parent] + more_weight[choice]
        hopeful = cost + rest[unit + 1] + price * (weight - limit) <= incumbent + slack
        hopeful &= weight + lightest[unit + 1] <= limit * (1 + 1e-12)
        order = np.lexsort((cost[hopeful], weight[hopeful]))
        kept = np.flatnonzero(hopeful)[order]
        before = np.append(np.inf, np.minimum.accumulate(cost[kept])[:-1])
        kept = kept[cost[kept] < before]
        cost, weight = cost[kept], weight[kept]
        steps.append((parent[kept], choice[kept]))
    state, picked = int(cost.argmin()), []
    for parents, choices in reversed(steps):
        picked.append(int(choices[state]))
        state = int(parents[state])
    return picked[::-1]


def _price(costs: Sequence[Float], weights: Sequence[Float], limit: float) -> tuple[float, float]:
    """Return a price of weight near the one of the highest Lagrangian bound, and a total cost that is within `limit`.

    At each price every unit takes its cheapest choice; by bisection on the price, totals come within the limit.
    """

    def totals(price: float) -> tuple[float, float]:
        taken = [int((cost + price * weight).argmin()) for cost, weight in zip(costs, weights, strict=True)]
        return (
            float(sum(cost[i] for cost, i in zip(costs, taken, strict=True))),
            float(sum(weight[i] for weight, i in zip(weights, taken, strict=True))),
        )

    cheapest, weight = totals(0.0)
    if weight <= limit:
        return 0.0, cheapest
    lightest = [np.lexsort((cost, weight))[0] for cost, weight in zip(costs, weights, strict=True)]
    best = float(sum(cost[i] for cost, i in zip(costs, lightest, strict=True)))
    low, high = 0.0, 1.0
    while totals(high)[1] > limit and high < 1e30:
        high *= 4
    for _ in range(100):
        middle = (low + high) / 2
        cost, weight = totals(middle)
        if weight > limit:
            low = middle
        else:
            high, best = middle, min(best, cost)
    return high, best
