"""Measure the energy of a block of answers, at less than a hundredth of their time.

Energy counters are read before the block and after it, and once a minute in between, lest one begins again twice. A
sensor that tells the power of the moment is read by a thread, which rests a hundred times as long as a reading took.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from edgetune_runtime.bench.power import supplies
from edgetune_runtime.bench.power.conditions import Celsius, Conditions, Megahertz, look
from edgetune_runtime.bench.power.supplies import Counter, Finding, Gauge
from edgetune_runtime.gpu import Gpu
from edgetune_runtime.typed_json import Number, Range, Seconds

_EVERY_S = 60.0  # a counter of 262 kJ, the least that is common, begins again after 10 minutes at 430 W
_PERIOD_S = 0.1
_REST = 100  # times the duration of a reading

Joules = Annotated[float, Range(0, 1e12)]
Watts = Annotated[float, Range(0, 1e9)]


@dataclass(frozen=True, kw_only=True)
class Power:
    """Energy, temperatures and clocks of the measured answers; None where the machine does not tell.

    `joules` are of one answer, the sum of `parts`, which say what told them; `watts` are the mean over `seconds`, in
    which there were `answers`. `untold` is the reason where there are no joules. The rest is as in
    `conditions.Conditions`, at the end of the answers. All of it is the whole machine's, other processes included.
    """

    answers: Number
    seconds: Seconds
    joules: Joules | None
    watts: Watts | None
    parts: dict[str, Joules]
    untold: str | None
    temperature_c: Celsius | None
    cpu_mhz: Megahertz | None
    gpu_temperature_c: Celsius | None
    gpu_mhz: Megahertz | None
    mode: str | None


def pooled(powers: Sequence[Power]) -> Power:
    """Return what several blocks come to: joules weighed by answers, the highest temperatures, median clocks."""
    first = powers[0]
    answers, seconds = sum(power.answers for power in powers), sum(power.seconds for power in powers)
    untold = next((power.untold for power in powers if power.untold), None)
    if not untold and any(power.parts.keys() != first.parts.keys() for power in powers):
        untold = "told by other sources in some parts of the records"
    names = [] if untold else first.parts
    parts = {name: sum(power.parts[name] * power.answers for power in powers) / answers for name in names}
    modes = dict.fromkeys(power.mode for power in powers if power.mode)
    return _power(
        answers,
        seconds,
        parts,
        untold,
        Conditions(
            temperature_c=max(_known(powers, "temperature_c"), default=None),
            cpu_mhz=_median(_known(powers, "cpu_mhz")),
            gpu_temperature_c=max(_known(powers, "gpu_temperature_c"), default=None),
            gpu_mhz=_median(_known(powers, "gpu_mhz")),
            mode=" / ".join(modes) or None,
        ),
    )


class Meter:
    """Measures what happens inside its `with` block.

    Args:
        root: folder in which sys/, etc/ and var/ are.
        gpu: the NVIDIA GPU that computes; None leaves the energy of GPUs out.
    """

    def __init__(self, root: Path = Path("/"), gpu: Gpu | None = None) -> None:
        self._root, self._gpu = root, gpu
        self._supplies = supplies.find(root, gpu)
        self._counted = [_Counted(counter) for counter in self._supplies.counters]
        self._sampled = [_Sampled(gauge) for gauge in self._supplies.gauges]
        self._begun = self._ended = self._read = 0.0
        self._sampling: _Sampling | None = None
        self._conditions: Conditions | None = None

    @property
    def findings(self) -> Sequence[Finding]:
        """What each kind of source tells here."""
        return self._supplies.findings

    def __enter__(self) -> Meter:
        """Begin."""
        for counted in self._counted:
            counted.read()
        for sampled in self._sampled:
            sampled.read()
        if self._sampled:
            self._sampling = _Sampling(self._sampled)
            self._sampling.start()
        self._begun = self._read = time.perf_counter()
        return self

    def tick(self) -> None:
        """Call after each answer: reads the counters where a minute has passed since they were read."""
        if time.perf_counter() - self._read >= _EVERY_S:
            for counted in self._counted:
                counted.read()
            self._read = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and look at temperatures and clocks before they fall."""
        if self._sampling is not None:
            self._sampling.stop()
        for sampled in self._sampled:
            sampled.read()
        for counted in self._counted:
            counted.read()
        self._ended = time.perf_counter()
        self._conditions = look(self._root, self._gpu)

    def power(self, answers: int) -> Power:
        """Return the figures of the block that has ended, in which there were so many answers, at least one."""
        assert self._conditions is not None
        sources: list[_Counted | _Sampled] = [*self._counted, *self._sampled]
        broken = next((f"{source.name}: {source.problem}" for source in sources if source.problem), None)
        untold = self._supplies.untold or broken
        parts = {} if untold else {source.name: source.joules / answers for source in sources}
        return _power(answers, self._ended - self._begun, parts, untold, self._conditions)


class _Counted:
    """A counter and the joules since its first reading."""

    def __init__(self, counter: Counter) -> None:
        self.name, self.joules, self.problem = counter.source, 0.0, ""
        self._counter = counter
        self._last: float | None = None

    def read(self) -> None:
        try:
            now = self._counter.read()
        except (OSError, ValueError) as error:
            self.problem = str(error)
            return
        if self._last is not None:
            self.joules += self._counter.since(self._last, now)
        self._last = now


class _Sampled:
    """A sensor and the joules since its first reading: between two readings power is their mean."""

    def __init__(self, gauge: Gauge) -> None:
        self.name, self.joules, self.problem = gauge.source, 0.0, ""
        self._gauge = gauge
        self._last: tuple[float, float] | None = None

    def read(self) -> None:
        try:
            watts = self._gauge.read()
        except (OSError, ValueError) as error:
            self.problem = str(error)
            return
        now = time.perf_counter()
        if self._last is not None:
            before, at = self._last
            self.joules += (watts + before) / 2 * (now - at)
        self._last = watts, now


class _Sampling(threading.Thread):
    """Reads all sensors again and again; they share one thread, or each would rest for itself alone."""

    def __init__(self, sampled: Sequence[_Sampled]) -> None:
        super().__init__(daemon=True)
        self._sampled = sampled
        self._stopped = threading.Event()

    def run(self) -> None:
        rest = _PERIOD_S
        while not self._stopped.wait(rest):
            started = time.perf_counter()
            for one in self._sampled:
                one.read()
            rest = max(_PERIOD_S, _REST * (time.perf_counter() - started))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _power(answers: int, seconds: float, parts: dict[str, float], untold: str | None, conditions: Conditions) -> Power:
    joules = sum(parts.values()) if parts else None
    watts = joules * answers / seconds if joules is not None and seconds > 0 else None
    told = {each.name: getattr(conditions, each.name) for each in fields(conditions)}
    return Power(answers=answers, seconds=seconds, joules=joules, watts=watts, parts=parts, untold=untold, **told)


def _known(powers: Sequence[Power], name: str) -> list[Any]:
    return [value for power in powers if (value := getattr(power, name)) is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
