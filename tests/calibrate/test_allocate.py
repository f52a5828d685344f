"""The choice of bits against trying every combination."""

from __future__ import annotations

import itertools
import random

import pytest

from edgetune_calibrate.allocate import Choice, Unit, plan, within_error, within_size
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat

THREE, FOUR = (BlockFormat(bits, 128, False) for bits in (3, 4))


def problem(seed: int) -> list[list[Choice]]:
    """Return a few units with uneven choices; some dominate others, some are equal, some errors are 0."""
    drawn = random.Random(seed)
    units = []
    for _ in range(drawn.randint(1, 6)):
        widths = drawn.sample([3, 4, 8, 16], drawn.randint(1, 4))
        units.append(
            [
                Choice(
                    BlockFormat(bits, 32, True),
                    drawn.choice([3, 5, 7]) * bits,
                    drawn.choice([0.0, drawn.random() / bits]),
                )
                for bits in widths
            ]
        )
    return units


def combinations(units: list[list[Choice]]) -> list[tuple[int, float]]:
    """Return size and error of every combination."""
    every = itertools.product(*units)
    return [(sum(one.size for one in picked), sum(one.error for one in picked)) for picked in every]


@pytest.mark.parametrize("seed", range(100))
def test_choices_are_the_best_of_all_combinations(seed: int) -> None:
    units = problem(seed)
    every = combinations(units)
    sizes, errors = [size for size, _ in every], [error for _, error in every]
    drawn = random.Random(-seed - 1)

    limit = drawn.randint(min(sizes), max(sizes))
    picked = within_size(units, limit)
    assert all(one in unit for one, unit in zip(picked, units, strict=True))
    assert sum(one.size for one in picked) <= limit
    assert sum(one.error for one in picked) == pytest.approx(min(error for size, error in every if size <= limit))

    most = drawn.uniform(min(errors), max(errors))
    picked = within_error(units, most)
    assert sum(one.error for one in picked) <= most * (1 + 1e-9)
    assert sum(one.size for one in picked) == min(size for size, error in every if error <= most)


def test_a_plan_names_the_format_of_every_linear() -> None:
    units = [
        Unit(("q", "k"), (Choice(THREE, 30, 0.09), Choice(FOUR, 40, 0.01))),
        Unit(("o",), (Choice(THREE, 30, 0.0009), Choice(FOUR, 40, 0.0001))),
    ]
    within = plan(units, budget=70)
    assert within.formats == {"q": FOUR, "k": FOUR, "o": THREE}
    assert within.size == 70
    assert within.drift == pytest.approx((0.01 + 0.0009) ** 0.5)
    assert plan(units, max_drift=0.11).formats == within.formats
    assert plan(units, max_drift=0.1009).formats == {"q": FOUR, "k": FOUR, "o": FOUR}


def test_limits_out_of_reach_are_refused() -> None:
    units = [Unit(("o",), (Choice(THREE, 2_000_000, 0.04), Choice(FOUR, 3_000_000, 0.01)))]
    with pytest.raises(InputError, match=r"2\.00 MB at the fewest bits, more than the budget of 1\.00 MB"):
        plan(units, budget=1_000_000)
    with pytest.raises(InputError, match=r"move boxes by 10 % at the most bits, more than the limit of 5 %"):
        plan(units, max_drift=0.05)
    with pytest.raises(InputError, match="exclude each other"):
        plan(units)
    with pytest.raises(InputError, match="exclude each other"):
        plan(units, budget=1, max_drift=1.0)


def test_a_model_of_real_size_is_solved() -> None:
    """36 blocks of 4 units with 3 choices and a head: within the budget, and not beaten by any single exchange."""
    drawn = random.Random(0)
    units = []
    for size in (6_300_000, 4_200_000, 25_000_000, 12_000_000) * 36 + (311_000_000,):
        error = drawn.lognormvariate(0, 1)
        sizes = ((3, size * 3 // 8, error * 5), (4, size // 2, error), (8, size, error / 250))
        units.append([Choice(BlockFormat(bits, 128, False), bytes_, lost) for bits, bytes_, lost in sizes])
    limit = sum(unit[1].size for unit in units) * 9 // 10
    picked = within_size(units, limit)
    spent = sum(one.size for one in picked)
    assert spent <= limit
    for unit, one in zip(units, picked, strict=True):
        assert all(other.error >= one.error for other in unit if spent - one.size + other.size <= limit)
