"""A server of the tiny model, as a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_runtime.session import Session
from served import Asked, Server, questions


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Server]:
    """`edgetune-run serve` of the tiny model."""
    with Server(f"tiny={tiny_bundle}") as running:
        yield running


@pytest.fixture(scope="session")
def session(tiny_bundle: Path) -> Session:
    """The same bundle without a server."""
    return Session.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def asked(tiny_scenes: Path) -> list[Asked]:
    """Pictures and what to find in them."""
    return questions(tiny_scenes)
