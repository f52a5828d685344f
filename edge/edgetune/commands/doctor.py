"""`edgetune doctor`: what is installed, which engines really run, and how to get the rest."""

from __future__ import annotations

from dataclasses import asdict

import click
from tqdm import tqdm

from edgetune import __version__
from edgetune.commands._common import Console, suggestion, verb
from edgetune_runtime.errors import MissingDependency


@verb()
@click.option(
    "--require",
    metavar="NAMES",
    help="Exit with code 3 unless these work, with commas between names, such as onnx,train.",
)
def command(console: Console, require: str | None) -> None:
    """Say what is installed, which engines work and how to get the rest."""
    from edgetune.doctor import FEATURES, examine
    from edgetune.doctor.machine import describe_machine
    from edgetune.doctor.plugins import try_plugins
    from edgetune.doctor.power import describe_power

    required = [name.strip() for name in require.split(",")] if require else []
    for name in required:
        if name not in FEATURES:
            known = suggestion(name, FEATURES) or f" Known: {', '.join(FEATURES)}."
            raise click.BadParameter(f"{name!r} is not something the doctor knows.{known}", param_hint="'--require'")
    machine = describe_machine()
    with tqdm(total=len(FEATURES), desc="trying engines", leave=False, disable=None, delay=2) as bar:
        features = examine(progress=lambda _: bar.update())
    plugins = try_plugins()
    power = describe_power()
    lacking = [feature for feature in features if feature.name in required and not feature.works]

    console.line(f"edgetune {__version__}")
    for key, value in machine.items():
        console.line(f"{key.removesuffix('_bytes').replace('_', ' ')}: {_shown(key, value)}")
    console.line()
    console.table([{"feature": f.name, "works": "yes" if f.works else "no", "found": f.detail} for f in features])
    console.line()
    console.table([{"power": p.name, "told": "yes" if p.tells else "no", "found": p.detail} for p in power])
    packages = {package.name: package for feature in features for package in feature.packages}
    console.line()
    console.table([{"package": p.name, "version": p.installed, "needed": p.floor} for p in packages.values()])
    if plugins:
        console.line()
        shown = ((p.name, p.group, p.package, "yes" if p.works else "no", p.detail) for p in plugins)
        console.table([dict(zip(("plug-in", "group", "of", "works", "found"), row, strict=True)) for row in shown])
    missing = [feature for feature in features if not feature.works]
    if missing:
        console.line()
        console.table([{"missing": feature.name, "get it with": feature.install} for feature in missing])
    closed = [finding for finding in power if finding.fix]
    if closed:
        console.line()
        console.table([{"not told": finding.name, "opened with": finding.fix} for finding in closed])
    found: dict[str, object] = {"power": [asdict(p) for p in power]}
    found |= {"features": [asdict(f) for f in features], "plugins": [asdict(p) for p in plugins]}
    console.result({"edgetune": __version__, "machine": machine, **found})
    if lacking:
        names = ", ".join(f"{feature.name} ({feature.detail})" for feature in lacking)
        raise MissingDependency(f"missing: {names}", hint="; ".join(feature.install for feature in lacking))


def _shown(key: str, value: object) -> str:
    if value is None:
        return "unknown" if key != "nvidia" else "no driver found"
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
