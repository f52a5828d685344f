"""Plugins of every group are loaded alike: what is wrong with a package is one line that names it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune_runtime.errors import EdgetuneError, InputError, MissingDependency
from edgetune_runtime.families import all_families, family_of, get_family
from edgetune_runtime.plugins import Plugins
from packages import search, write_package

TOOLS: Plugins[int] = Plugins(
    "edgetune.tests", "tool", "a whole number", lambda found: isinstance(found, int), built_in=("hammer",)
)
FAMILY = """
from dataclasses import replace
from edgetune_runtime.families import FAMILIES
FAMILY = replace(FAMILIES["qwen3_vl"], name={name!r}, model_types={types!r})
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with one module, and what it names in one group."""

    def install(code: str, group: str = "edgetune.tests", name: str = "shop", **points: str) -> None:
        found = {key: f"{name}_tools:{value}" for key, value in points.items()}
        search(write_package(tmp_path / name, {group: found}, {f"{name}_tools.py": code}, name=name), monkeypatch)

    return install


def test_names_are_listed_without_an_import_and_loaded_by_one(install: Install) -> None:
    install("SAW, FILE = 3, 4", saw="SAW", file="FILE")
    assert (TOOLS.names(), "shop_tools" in sys.modules) == (["file", "saw"], False)
    assert (TOOLS.load("saw"), list(TOOLS.load_all())) == (3, [4, 3])


def test_an_unknown_name_comes_with_the_nearest_or_all(install: Install) -> None:
    install("SAW = 3", saw="SAW")
    for name, hint in (
        ("sav", "did you mean 'saw'?"),
        ("hamer", "did you mean 'hammer'?"),
        ("x", "known are hammer, saw"),
    ):
        with pytest.raises(InputError, match=f"unknown tool '{name}'") as caught:
            TOOLS.load(name)
        assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import no_such_library", MissingDependency, "cannot be imported: No module named 'no_such_library'"),
        ("", InputError, "cannot be loaded: AttributeError: module 'shop_tools' has no attribute 'SAW'"),
        ("SAW = (", InputError, "cannot be loaded: SyntaxError: "),
        ("raise SystemExit(1)", InputError, "cannot be loaded: SystemExit: 1"),
        ("SAW = 'a saw'", InputError, "is not a whole number"),
    ],
)
def test_a_broken_package_is_one_line_that_names_it(
    install: Install, code: str, kind: type[EdgetuneError], message: str
) -> None:
    install(code, saw="SAW")
    with pytest.raises(kind) as caught:
        TOOLS.load("saw")
    assert str(caught.value).startswith(f"the tool 'saw' of shop 1.0 (shop_tools:SAW) {message}")
    assert caught.value.hint is not None and type(caught.value) is kind


def test_a_name_that_is_built_in_or_added_twice_is_not_replaced(install: Install) -> None:
    install("HAMMER = 3", hammer="HAMMER")
    assert TOOLS.names() == []
    with pytest.raises(InputError, match=r"the tool 'hammer' of shop 1\.0 \(.*\) has the name of a built-in one"):
        list(TOOLS.load_all())
    install("SAW = 1", name="one", saw="SAW")
    install("SAW = 2", name="two", saw="SAW")
    with pytest.raises(InputError, match=r"the tool 'saw' is added by several packages: one 1\.0, two 1\.0"):
        TOOLS.load("saw")


def test_a_family_of_another_package_is_found_by_its_name_and_model_type(install: Install) -> None:
    install(FAMILY.format(name="other", types=("other_vl",)), group="edgetune.families", other="FAMILY")
    assert get_family("other") == get_family("other_vl") == family_of("other_vl", []) == all_families()[-1]
    assert get_family("qwen3_vl").name == family_of("qwen3_vl", []).name == "qwen3_vl"


@pytest.mark.parametrize(
    ("name", "types", "message"),
    [
        ("else", ("other_vl",), "calls itself 'else'"),
        ("other", ("qwen3_vl",), "claims model type 'qwen3_vl', which is that of 'qwen3_vl'"),
    ],
)
def test_a_family_that_takes_anothers_place_is_refused(
    install: Install, name: str, types: tuple[str, ...], message: str
) -> None:
    install(FAMILY.format(name=name, types=types), group="edgetune.families", other="FAMILY")
    with pytest.raises(InputError, match=r"the model family 'other' of shop 1\.0 ") as caught:
        get_family("other")
    assert message in str(caught.value)
