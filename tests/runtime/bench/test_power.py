"""Energy, temperatures and clocks read from trees of files as kernels show them, against sums made by hand."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgetune_runtime.bench.power.conditions import Conditions, findings, look
from edgetune_runtime.bench.power.meter import Meter, pooled
from edgetune_runtime.bench.power.supplies import find
from edgetune_runtime.gpu import Gpu
from sysfs import AGX_ORIN, CONDITIONS, MICROWATTS, NANO, ORIN_NX, RAPL, ZONES, build


def test_rapl_counts_packages_and_memory_over_the_end_of_a_counter(tmp_path: Path) -> None:
    build(tmp_path, RAPL, ZONES)
    with Meter(tmp_path) as meter:
        build(tmp_path, RAPL, {"intel-rapl:0/energy_uj": "1000000", "intel-rapl:0:1/energy_uj": "7500000"})
        time.sleep(0.01)
    power = meter.power(4)
    # 262143.328850 − 262143.000000 + 1 J of the package, 2.5 J of the memory
    assert power.parts == pytest.approx({"RAPL package-0": 1.32885 / 4, "RAPL dram": 2.5 / 4})
    assert power.joules == pytest.approx(0.9572125)
    assert power.watts == pytest.approx(3.82885 / power.seconds)
    assert power.untold is None
    assert [(found.name, found.tells, found.detail) for found in meter.findings] == [
        ("RAPL", True, "package-0, dram"),
        ("INA3221", False, f"no sensors in {tmp_path}/sys/bus/i2c/drivers"),
    ]


def test_memories_of_two_packages_are_told_apart(tmp_path: Path) -> None:
    second = {name.replace(":0", ":2", 1).replace("package-0", "package-1"): text for name, text in ZONES.items()}
    build(tmp_path, RAPL, ZONES | second | {"intel-rapl:2/name": "package-1"})
    names = [counter.source for counter in find(tmp_path).counters]
    assert sorted(names) == ["RAPL dram", "RAPL dram (intel-rapl:2:1)", "RAPL package-0", "RAPL package-1"]


@pytest.mark.parametrize(
    ("files", "watts", "told"),
    [
        # 4.96 V × 1.2 A: the input feeds everything else
        (ORIN_NX, {"INA3221 VDD_IN": 5.952}, "VDD_IN, which feeds VDD_CPU_GPU_CV, VDD_SOC"),
        (MICROWATTS, {"INA3221 VDD_IN": 5.952}, "VDD_IN, which feeds the module"),
        (NANO, {"INA3221 POM_5V_IN": 2.475}, "POM_5V_IN, which feeds POM_5V_GPU"),
        (
            AGX_ORIN,
            {
                "INA3221 VDD_GPU_SOC": 10.0,
                "INA3221 VDD_CPU_CV": 5.0,
                "INA3221 VIN_SYS_5V0": 4.734504,
                "INA3221 VDDQ_VDD2_1V8AO": 0.39744,
            },
            "the sum of VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0, VDDQ_VDD2_1V8AO",
        ),
    ],
)
def test_rails_of_a_jetson(tmp_path: Path, files: dict[str, str], watts: dict[str, float], told: str) -> None:
    found = find(build(tmp_path, "sys/bus/i2c/drivers", files))
    assert {gauge.source: gauge.read() for gauge in found.gauges} == pytest.approx(watts)
    assert found.findings[1].detail == told
    assert found.untold is None


def test_a_sensor_of_power_is_summed_over_the_time(tmp_path: Path) -> None:
    build(tmp_path, "sys/bus/i2c/drivers", ORIN_NX)
    with Meter(tmp_path) as meter:
        time.sleep(0.3)
    power = meter.power(3)
    assert power.watts == pytest.approx(5.952, rel=0.1)
    assert power.joules == pytest.approx(5.952 * power.seconds / 3, rel=0.1)


def test_a_channel_that_is_switched_off_is_left_out(tmp_path: Path) -> None:
    build(tmp_path, "sys/bus/i2c/drivers", AGX_ORIN)
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr2_input").unlink()
    assert "INA3221 VDD_CPU_CV" not in [gauge.source for gauge in find(tmp_path).gauges]


def test_a_machine_that_tells_nothing_says_so(tmp_path: Path) -> None:
    with Meter(tmp_path) as meter:
        pass
    power = meter.power(1)
    assert (power.joules, power.watts, power.parts) == (None, None, {})
    assert power.untold == "this machine tells none (RAPL, INA3221)"
    assert (power.temperature_c, power.cpu_mhz, power.gpu_mhz, power.mode) == (None, None, None, None)


def test_a_source_that_stops_in_between_is_no_figure(tmp_path: Path) -> None:
    build(tmp_path, RAPL, ZONES)
    with Meter(tmp_path) as meter:
        shutil.rmtree(tmp_path / RAPL / "intel-rapl:0")
    power = meter.power(1)
    assert power.joules is None and power.untold is not None
    assert power.untold.startswith("RAPL package-0: ") and "No such file" in power.untold


@contextmanager
def nobody() -> Iterator[None]:
    """Read files as a user without rights, whoever runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_counters_that_are_roots_are_told_with_what_opens_them() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = build(Path(name), RAPL, ZONES)
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        for counter in root.rglob("energy_uj"):
            counter.chmod(0o400 if os.geteuid() == 0 else 0)
        with nobody():
            found = find(root)
            untold = found.untold
            (root / RAPL / "intel-rapl:0" / "name").read_text()
        assert found.counters == []
        assert untold is not None
        assert untold.startswith(
            f"RAPL: {root}/{RAPL}/intel-rapl:0/energy_uj may be read by root only (sudo chmod a+r "
        )


def test_conditions_of_a_jetson(tmp_path: Path) -> None:
    told = look(build(tmp_path, "", CONDITIONS))
    assert told == Conditions(
        temperature_c=51.093, cpu_mhz=1510.4, gpu_temperature_c=48.718, gpu_mhz=612.0, mode="MODE_30W"
    )
    assert [(found.name, found.tells, found.detail) for found in findings(told, tmp_path)] == [
        ("temperature", True, "51.093 °C"),
        ("CPU clock", True, "1510.4 MHz"),
        ("GPU temperature", True, "48.718 °C"),
        ("GPU clock", True, "612 MHz"),
        ("power mode", True, "MODE_30W"),
    ]


def test_a_mode_without_a_name_is_its_number(tmp_path: Path) -> None:
    build(tmp_path, "", CONDITIONS | {"etc/nvpmodel.conf": "# nothing"})
    assert look(tmp_path).mode == "2"


def test_what_is_not_there_is_named_by_its_place(tmp_path: Path) -> None:
    found = findings(look(tmp_path), tmp_path)
    assert not any(one.tells for one in found)
    assert found[0].detail == f"nothing in {tmp_path}/sys/class/thermal"


def test_blocks_are_pooled_by_their_answers(tmp_path: Path) -> None:
    build(tmp_path, RAPL, ZONES)
    build(tmp_path, "", CONDITIONS)
    powers = []
    for answers, microjoules, degrees in ((1, 4_000_000, "60000"), (3, 6_000_000, "55000")):
        before = int((tmp_path / RAPL / "intel-rapl:0:1/energy_uj").read_text())
        with Meter(tmp_path) as meter:
            build(tmp_path, RAPL, {"intel-rapl:0:1/energy_uj": str(before + microjoules)})
            build(tmp_path, "", {"sys/class/thermal/thermal_zone0/temp": degrees})
            time.sleep(0.01)
        powers.append(meter.power(answers))
    whole = pooled(powers)
    assert whole.joules == pytest.approx((4 + 6) / 4)
    assert whole.answers == 4 and whole.seconds == pytest.approx(powers[0].seconds + powers[1].seconds)
    assert whole.watts == pytest.approx(10 / whole.seconds)
    assert whole.temperature_c == 60.0

    shutil.rmtree(tmp_path / RAPL / "intel-rapl:0:1")
    with Meter(tmp_path) as meter:
        pass
    mixed = pooled([*powers, meter.power(1)])
    assert mixed.joules is None and mixed.untold == "told by other sources in some parts of the records"


class StandIn(Gpu):
    """A GPU where there is none: its counter, its power, or neither."""

    def __init__(self, joules: float | None, watts: float | None) -> None:
        self.counted, self.drawn = joules, watts

    def name(self) -> str:
        return "NVIDIA H200"

    def joules(self) -> float | None:
        return self.counted

    def watts(self) -> float | None:
        return self.drawn

    def celsius(self) -> float:
        return 41.0

    def megahertz(self) -> float:
        return 1980.0


def test_the_energy_of_a_gpu_comes_on_top_of_the_processors(tmp_path: Path) -> None:
    gpu = StandIn(100.0, 400.0)
    build(tmp_path, RAPL, ZONES)
    with Meter(tmp_path, gpu) as meter:
        gpu.counted = 150.0
        build(tmp_path, RAPL, {"intel-rapl:0:1/energy_uj": "15000000"})
    power = meter.power(5)
    assert power.parts == pytest.approx({"RAPL package-0": 0.0, "RAPL dram": 2.0, "NVML": 10.0})
    assert power.joules == pytest.approx(12.0)
    assert (power.gpu_temperature_c, power.gpu_mhz) == (41.0, 1980.0)


def test_a_gpu_without_a_counter_is_sampled_and_one_that_tells_nothing_said_so(tmp_path: Path) -> None:
    assert [gauge.read() for gauge in find(tmp_path, StandIn(None, 400.0)).gauges] == [400.0]
    silent = find(tmp_path, StandIn(None, None))
    assert silent.untold == "this machine tells none (RAPL, INA3221, NVML)"
    assert silent.findings[2].detail == "NVIDIA H200 tells neither energy nor power"


def test_the_gpu_of_a_jetson_is_not_counted_twice(tmp_path: Path) -> None:
    found = find(build(tmp_path, "sys/bus/i2c/drivers", ORIN_NX), StandIn(100.0, 5.0))
    assert [gauge.source for gauge in found.gauges] == ["INA3221 VDD_IN"] and not found.counters
    assert found.findings[2].detail == "energy of NVIDIA H200, which the INA3221 measures already"


def test_nvml_tells_what_its_own_bindings_tell() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no NVIDIA driver: {error}")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    gpu = Gpu()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    joules = gpu.joules()
    after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    assert joules is not None and before <= joules <= after
    assert gpu.watts() == pytest.approx(pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3, rel=0.2)
    assert gpu.celsius() == pytest.approx(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), abs=2)
    assert gpu.megahertz() == pytest.approx(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM), rel=0.5)
    assert [counter.source for counter in find(Path("/nowhere"), gpu).counters] == ["NVML"]
