"""Which packages an extra needs, read from the installed metadata so that pyproject.toml stays the only list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from edgetune_runtime.errors import MissingDependency

_REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[([\w,-]+)\])?\s*([^;]*?)\s*(?:;.*extra == ['\"]([\w-]+)['\"].*)?$")
_FLOOR = re.compile(r">=\s*(\d+(?:\.\d+)*)")


@dataclass(frozen=True)
class Package:
    """A distribution that is needed: its name, the oldest version that serves, and the installed one, if any."""

    name: str
    floor: str | None
    installed: str | None

    @property
    def fits(self) -> bool:
        """Whether it is installed and not too old."""
        return self.installed is not None and (self.floor is None or _release(self.installed) >= _release(self.floor))

    @property
    def complaint(self) -> str:
        """What is wrong with it, in a few words."""
        return f"{self.name} missing" if self.installed is None else f"{self.name} {self.installed} < {self.floor}"


def packages_of_extra(distribution: str, extra: str) -> list[Package]:
    """Return what an extra of an installed distribution adds, other distributions' extras followed, sorted."""
    found: dict[str, Package] = {}
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError as error:
        raise MissingDependency(
            f"{distribution} runs from its source folder without being installed, so its needs are unknown",
            hint="pip install --editable runtime --editable .",
        ) from error
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match[4] != extra:
            continue
        name, extras, specifier = match[1], match[2], match[3]
        for inner in extras.split(",") if extras else []:
            found.update((package.name, package) for package in packages_of_extra(name, inner))
        if not extras:
            floor = _FLOOR.search(specifier)
            found[name] = Package(name, floor[1] if floor else None, _installed(name))
    return [found[name] for name in sorted(found)]


def _installed(name: str) -> str | None:
    for candidate in (name, f"{name}-gpu"):  # onnxruntime-gpu provides the same module as onnxruntime
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
