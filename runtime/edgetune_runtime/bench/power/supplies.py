"""What tells how much energy the machine uses: RAPL counters, INA3221 sensors of a Jetson, and NVIDIA's driver.

RAPL counts microjoules and begins again at `max_energy_range_uj` (docs.kernel.org, power/powercap/powercap). Since
Linux 5.10 its counters are root's, because they betray what other programs compute (CVE-2020-8694). An INA3221 measures
three rails, in millivolts and milliamperes (docs.kernel.org, hwmon/ina3221). NVML counts millijoules of one GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_runtime.gpu import Gpu

POWERCAP = Path("sys/class/powercap")
_RAPL_FIX = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj, which lasts until the next start"
_INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Names of the rail through which all of a Jetson module is fed; the others are parts of it."""


@dataclass
class Counter:
    """A counter of energy.

    Attributes:
        source: what it is called, such as "RAPL package-0".
        read: returns its value in joules; may raise OSError.
        range: joules at which it begins again at zero; None where it never does.
    """

    source: str
    read: Callable[[], float]
    range: float | None = None

    def since(self, before: float, now: float) -> float:
        """Return the joules between two values, of which the counter began again at most once.

        >>> Counter("RAPL package-0", lambda: 0.0, range=1000.0).since(990.0, 15.0)
        25.0
        """
        return now - before if now >= before or self.range is None else now - before + self.range


@dataclass
class Gauge:
    """A sensor of power: `read` returns watts and may raise OSError."""

    source: str
    read: Callable[[], float]


@dataclass(frozen=True)
class Finding:
    """What one kind of source tells on this machine.

    Attributes:
        name: such as "RAPL".
        tells: whether it can be read.
        detail: what it tells, or why it does not.
        fix: what to do about that, where something can be done.
    """

    name: str
    tells: bool
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Supplies:
    """Everything that tells of energy here, and a finding for each kind of source."""

    counters: Sequence[Counter]
    gauges: Sequence[Gauge]
    findings: Sequence[Finding]

    @property
    def untold(self) -> str | None:
        """Why no energy is told; None where it is."""
        if self.counters or self.gauges:
            return None
        mendable = [f"{found.name}: {found.detail} ({found.fix})" for found in self.findings if found.fix]
        return "; ".join(mendable) or f"this machine tells none ({', '.join(found.name for found in self.findings)})"


def find(root: Path = Path("/"), gpu: Gpu | None = None) -> Supplies:
    """Look for all sources of energy and power, and read each once.

    Args:
        root: folder in which sys/ is.
        gpu: the NVIDIA GPU that computes; None leaves the energy of GPUs out.
    """
    counters, rapl = _rapl(root)
    gauges, rails = _rails(root)
    findings = [rapl, rails]
    if gpu is not None:
        more, told = _nvml(gpu)
        if more and gauges:  # the rails of a module feed its GPU, too
            more, told = [], Finding("NVML", False, f"{told.detail}, which the INA3221 measures already")
        findings.append(told)
        counters += [one for one in more if isinstance(one, Counter)]
        gauges += [one for one in more if isinstance(one, Gauge)]
    return Supplies(counters, gauges, findings)


def _rapl(root: Path) -> tuple[list[Counter], Finding]:
    """Processor packages and the memory beside them; cores are parts of a package, and psys holds all of them."""
    found: list[Counter] = []
    for zone in sorted((root / POWERCAP).glob("intel-rapl:*")):  # AMD's processors have this name, too
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package") and name != "dram":
                continue
            range_ = int((zone / "max_energy_range_uj").read_text()) / 1e6
            counter = Counter(f"RAPL {name}", _microjoules(zone / "energy_uj"), range_)
            counter.read()
        except PermissionError:
            return [], Finding("RAPL", False, f"{zone / 'energy_uj'} may be read by root only", _RAPL_FIX)
        except (OSError, ValueError) as error:
            return [], Finding("RAPL", False, f"{zone} cannot be read: {error}")
        if any(other.source == counter.source for other in found):  # the dram of a second package
            counter.source += f" ({zone.name})"
        found.append(counter)
    if not found:
        return [], Finding("RAPL", False, f"no zones in {root / POWERCAP}")
    return found, Finding("RAPL", True, ", ".join(counter.source.removeprefix("RAPL ") for counter in found))


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _rails(root: Path) -> tuple[list[Gauge], Finding]:
    """The rail that feeds the whole module where it is measured, else all rails that are."""
    drivers = root / "sys/bus/i2c/drivers"
    rails: dict[str, Gauge] = {}
    problems: list[str] = []
    # JetPack 5 and later have the kernel's own driver, JetPack 4 one of NVIDIA's.
    for folder in sorted([*drivers.glob("ina3221*/*/hwmon/hwmon*"), *drivers.glob("ina3221*/*/iio:device*")]):
        of = _hwmon_rail if folder.name.startswith("hwmon") else _iio_rail
        for channel in range(3):
            try:
                rail = of(folder, channel)
                if rail is None:
                    continue
                rail[1]()
            except (OSError, ValueError) as error:  # a channel that is switched off has no data
                problems.append(str(error))
                continue
            rails[rail[0]] = Gauge(f"INA3221 {rail[0]}", rail[1])
    if not rails:
        return [], Finding("INA3221", False, problems[0] if problems else f"no sensors in {drivers}")
    whole = next((rails[name] for name in _INPUTS if name in rails), None)
    parts = f"{whole.source.removeprefix('INA3221 ')}, which feeds " if whole else "the sum of "
    listed = ", ".join(name for name, gauge in rails.items() if gauge is not whole)
    return [whole] if whole else list(rails.values()), Finding("INA3221", True, parts + (listed or "the module"))


def _hwmon_rail(folder: Path, channel: int) -> tuple[str, Callable[[], float]] | None:
    number = channel + 1
    label = folder / f"in{number}_label"
    name = label.read_text().strip() if label.is_file() else f"{folder.parent.parent.name} channel {number}"
    power, volts, amperes = (folder / f"{kind}{number}_input" for kind in ("power", "in", "curr"))
    if name == "NC" or not (power.is_file() or volts.is_file()):  # not connected
        return None
    if power.is_file():
        return name, lambda: int(power.read_text()) / 1e6
    return name, lambda: int(volts.read_text()) * int(amperes.read_text()) / 1e6


def _iio_rail(folder: Path, channel: int) -> tuple[str, Callable[[], float]] | None:
    label, power = folder / f"rail_name_{channel}", folder / f"in_power{channel}_input"
    if not (label.is_file() and power.is_file()) or (name := label.read_text().strip()) == "NC":
        return None
    return name, lambda: int(power.read_text()) / 1e3


def _nvml(gpu: Gpu) -> tuple[list[Counter | Gauge], Finding]:
    name = gpu.name()
    if name is None:
        return [], Finding("NVML", False, "no NVIDIA driver, or no GPU that it names")
    if gpu.joules() is not None:
        return [Counter("NVML", _told(gpu.joules))], Finding("NVML", True, f"energy of {name}")
    if gpu.watts() is not None:
        return [Gauge("NVML", _told(gpu.watts))], Finding("NVML", True, f"power of {name}")
    return [], Finding("NVML", False, f"{name} tells neither energy nor power")


def _told(read: Callable[[], float | None]) -> Callable[[], float]:
    def value() -> float:
        found = read()
        if found is None:
            raise OSError("the NVIDIA driver no longer tells it")
        return found

    return value
