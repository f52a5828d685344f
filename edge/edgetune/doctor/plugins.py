"""What other installed packages add, each tried in a process of its own, where a crash harms nothing.

That process is `python -m edgetune.doctor.plugins GROUP NAME`.
"""

from __future__ import annotations

import pkgutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from edgetune.doctor.engines import told_by
from edgetune_runtime.errors import EdgetuneError
from edgetune_runtime.plugins import Plugins, package_of

HOMES = {
    "edgetune.families": "edgetune_runtime.families:OTHERS",
    "edgetune.towers": "edgetune_export.vision.towers:OTHERS",
    "edgetune.formats": "edgetune_data.formats:OTHERS",
    "edgetune.redactors": "edgetune_data.redactors:OTHERS",
    "edgetune.exporters": "edgetune_export.formats:OTHERS",
    "edgetune.backends": "edgetune_runtime.backends:ENGINES",
    "edgetune.verbs": "edgetune.cli:OTHERS",
}
"""Entry-point group -> its `Plugins`, which are imported in the process that tries one."""

_OURS = ("edgetune", "edgetune-runtime")


@dataclass(frozen=True)
class Plugin:
    """What a package adds.

    Attributes:
        group: its entry-point group, such as "edgetune.formats".
        name: what it is asked for by.
        package: name and version of the package.
        works: it can be loaded and is what the group wants.
        detail: the object that the entry point leads to, or why it cannot be used.
    """

    group: str
    name: str
    package: str
    works: bool
    detail: str


def try_plugins() -> list[Plugin]:
    """Load what other packages add, and return it sorted by group, in the order of `HOMES`, and name."""
    points = [point for group in HOMES for point in sorted(entry_points(group=group)) if not _is_ours(point)]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_try, points))


def _is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name in _OURS


def _try(point: EntryPoint) -> Plugin:
    works, detail = told_by("edgetune.doctor.plugins", point.group, point.name)
    return Plugin(point.group, point.name, package_of(point), works, point.value if works else detail)


def _main(group: str, name: str) -> int:
    plugins: Plugins[object] = pkgutil.resolve_name(HOMES[group])
    try:
        plugins.load(name)
    except EdgetuneError as error:
        print(" ".join(f"{error}".split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
