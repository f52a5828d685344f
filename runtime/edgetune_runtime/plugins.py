"""What other installed packages add: families, formats, exporters, engines, redactors and verbs, by their entry points.

A package names what it brings in its own pyproject.toml, and it is there as soon as the package is installed:

    [project.entry-points."edgetune.backends"]
    fast = "my_package.engine:FastEngine"

Names are read from the packages' metadata; a package is imported when what it brings is asked for. What is built in
goes first, so that no package can take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgetune_runtime.errors import EdgetuneError, InputError, MissingDependency

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """One kind of thing that packages may add, each under a name.

    Attributes:
        group: the entry-point group, such as "edgetune.backends".
        noun: what messages call one of them.
        wanted: what an entry point has to lead to, for messages.
        fits: whether an object is that.
        built_in: names that are taken.
        made: an entry point leads to a function or a class, which is called without arguments to make one.
        named: one knows its own name, which has to be that of its entry point.
    """

    group: str
    noun: str
    wanted: str
    fits: Callable[[Any], bool]
    built_in: Collection[str] = ()
    made: bool = False
    named: bool = False

    def points(self) -> list[EntryPoint]:
        """Return the entry points of all installed packages, sorted by name."""
        from importlib.metadata import entry_points  # a tenth of a second on a slow device

        return sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value))

    def names(self) -> list[str]:
        """Return the names that packages add, sorted; nothing is imported."""
        return list(dict.fromkeys(point.name for point in self.points() if point.name not in self.built_in))

    def load(self, name: str) -> T:
        """Import what a package adds under this name.

        Raises:
            InputError: no package or several have this name, it is that of something built in, or what is there is
                broken or something else; the line names the package.
            MissingDependency: the package, or something that it needs, cannot be imported.
        """
        found = [point for point in self.points() if point.name == name]
        if not found:
            raise self.unknown(name)
        if name in self.built_in:
            raise InputError(
                f"{self._described(found[0])} has the name of a built-in one",
                hint="uninstall the package, or ask its authors for another name",
            )
        if len(found) > 1:
            raise InputError(
                f"the {self.noun} {name!r} is added by several packages: {', '.join(map(package_of, found))}",
                hint="uninstall all but one of them",
            )
        return self._import(found[0])

    def load_all(self) -> Iterator[T]:
        """Import everything that packages add, sorted by name.

        Raises:
            InputError, MissingDependency: as `load`.
        """
        for name in dict.fromkeys(point.name for point in self.points()):
            yield self.load(name)

    def unknown(self, name: str) -> InputError:
        """Return the error for a name that nothing has, with the nearest one that something has, or all of them."""
        known = [*self.built_in, *self.names()]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
        return InputError(f"unknown {self.noun} {name!r}", hint=hint)

    def package(self, name: str) -> str:
        """Return the name and version of the package that adds this name."""
        return next(package_of(point) for point in self.points() if point.name == name)

    def _import(self, point: EntryPoint) -> T:
        what = self._described(point)
        try:
            found: Any = point.load()
            if self.made and callable(found):
                found = found()
        except EdgetuneError:
            raise
        except ImportError as error:
            raise MissingDependency(
                f"{what} cannot be imported: {error}", hint="install what it needs, or uninstall the package"
            ) from error
        except (Exception, SystemExit) as error:  # whatever the other package raises
            raise InputError(
                f"{what} cannot be loaded: {type(error).__name__}: {error}", hint="repair or uninstall the package"
            ) from error
        if not self.fits(found):
            raise InputError(f"{what} is not {self.wanted}", hint="repair or uninstall the package")
        if self.named and found.name != point.name:
            raise InputError(f"{what} calls itself {found.name!r}", hint="repair or uninstall the package")
        loaded: T = found
        return loaded

    def _described(self, point: EntryPoint) -> str:
        return f"the {self.noun} {point.name!r} of {package_of(point)} ({point.value})"


def package_of(point: EntryPoint) -> str:
    """Return the name and version of the package that declares an entry point, such as "others 1.0"."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "a package without a name"
