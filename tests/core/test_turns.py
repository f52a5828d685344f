"""Functions in turns: what each needs is made ready once for all that come to it together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgetune_core.turns import Turns


class Pages:
    """Notes which resources were made ready, and that none is while another is."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.now: int | None = None

    @contextmanager
    def open(self, number: int) -> Iterator[None]:
        """Make one ready."""
        assert self.now is None
        self.opened.append(number)
        self.now = number
        yield
        self.now = None


def test_a_resource_is_ready_while_it_is_used_and_made_ready_once_for_all() -> None:
    """Also where one function begins later in the order than the others, and one goes through it twice."""
    pages = Pages()
    turns = Turns(range(4), pages.open)

    def read(*numbers: int) -> list[int]:
        for number in numbers:
            turns.wait(number)
            assert pages.now == number
        return list(numbers)

    given = [(0, 1, 2, 3), (2, 3), (0, 1, 2, 3, 0, 1), ()]
    assert turns.run([lambda numbers=numbers: read(*numbers) for numbers in given]) == [list(one) for one in given]  # type: ignore[misc]
    assert pages.opened == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_one_raises_ends_all(error: type[BaseException]) -> None:
    """None of the others goes on, and the resource is given up."""
    pages, went_on = Pages(), []
    turns = Turns(range(2), pages.open)

    def fail() -> None:
        turns.wait(0)
        raise error("page 0 is torn")

    def read() -> None:
        turns.wait(0)
        turns.wait(1)
        went_on.append(1)

    with pytest.raises(error, match="page 0 is torn"):
        turns.run([read, fail, read])
    assert not went_on
    assert pages.opened == [0]
