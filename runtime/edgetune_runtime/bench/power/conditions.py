"""The conditions under which answers are given: power mode, temperatures and clocks.

The kernel tells temperatures in thousandths of a degree Celsius (docs.kernel.org, driver-api/thermal/sysfs-api), clocks
of cores in kilohertz (admin-guide/pm/cpufreq) and those of a Jetson's GPU in hertz (ABI sysfs-class-devfreq). The power
mode is a number that `nvpmodel` keeps, whose name stands in its configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgetune_runtime.bench.power.supplies import Finding
from edgetune_runtime.gpu import Gpu
from edgetune_runtime.typed_json import Range

Celsius = Annotated[float, Range(-273, 1000)]
Megahertz = Annotated[float, Range(0, 1e6)]

_TEGRA_GPUS = ("gpu", "gm20b", "gp10b", "gv11b", "ga10b", "gb10b")
"""Ends of the names of their devices: any, Nano, TX2, Xavier, Orin, Thor."""
_OFF = -50.0  # degrees under which a sensor belongs to a part that is switched off
_POWER_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """None where the machine does not tell.

    `temperature_c` is the hottest sensor beside the GPU's, `cpu_mhz` the clock of the fastest core, `gpu_mhz` of the
    GPU's multiprocessors; `mode` the power mode of a Jetson.
    """

    temperature_c: Celsius | None
    cpu_mhz: Megahertz | None
    gpu_temperature_c: Celsius | None
    gpu_mhz: Megahertz | None
    mode: str | None


def look(root: Path = Path("/"), gpu: Gpu | None = None) -> Conditions:
    """Read everything once.

    Args:
        root: folder in which sys/, etc/ and var/ are.
        gpu: the NVIDIA GPU that computes.
    """
    zones = _temperatures(root)
    own = {name: value for name, value in zones.items() if not name.lower().startswith("gpu")}
    others = [value for name, value in zones.items() if name not in own]
    return Conditions(
        temperature_c=max(own.values(), default=None),
        cpu_mhz=max(_numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3), default=None),
        gpu_temperature_c=_first(gpu.celsius() if gpu else None, *others),
        gpu_mhz=_first(gpu.megahertz() if gpu else None, *_gpu_clocks(root)),
        mode=_mode(root),
    )


def findings(told: Conditions, root: Path = Path("/")) -> list[Finding]:
    """Say of each condition what it is here, or where it would stand."""
    places = {
        "temperature": (told.temperature_c, "°C", root / "sys/class/thermal"),
        "CPU clock": (told.cpu_mhz, "MHz", root / "sys/devices/system/cpu/cpu0/cpufreq"),
        "GPU temperature": (told.gpu_temperature_c, "°C", root / "sys/class/thermal"),
        "GPU clock": (told.gpu_mhz, "MHz", root / "sys/class/devfreq"),
    }
    found = [
        Finding(name, value is not None, f"nothing in {place}" if value is None else f"{value:g} {unit}")
        for name, (value, unit, place) in places.items()
    ]
    mode = told.mode or f"no {root / 'var/lib/nvpmodel/status'}, which a Jetson has"
    return [*found, Finding("power mode", told.mode is not None, mode)]


def _temperatures(root: Path) -> dict[str, float]:
    """Degrees by the zones' types; of several zones of one type the hottest."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = _number(zone / "temp", 1e3)
        if value is not None and value > _OFF:
            name = _text(zone / "type") or zone.name
            found[name] = max(value, found.get(name, value))
    return found


def _gpu_clocks(root: Path) -> list[float]:
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    clocks = [_number(folder / "cur_freq", 1e6) for folder in folders if folder.name.endswith(_TEGRA_GPUS)]
    return [clock for clock in clocks if clock is not None]


def _mode(root: Path) -> str | None:
    number = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if number is None:
        return None
    names: dict[str, str] = dict(_POWER_MODEL.findall(_text(root / "etc/nvpmodel.conf") or ""))
    return names.get(str(int(number[1])), str(int(number[1])))


def _numbers(root: Path, pattern: str, unit: float) -> list[float]:
    values = [_number(path, unit) for path in root.glob(pattern)]
    return [value for value in values if value is not None]


def _number(path: Path, unit: float) -> float | None:
    try:
        return int(_text(path) or "") / unit
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
