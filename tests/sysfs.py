"""Files in which Linux tells energy, temperatures and clocks, to be written below a folder.

Sources: docs.kernel.org, power/powercap/powercap (zones of RAPL), hwmon/ina3221 and hwmon/sysfs-interface (millivolts,
milliamperes, microwatts), driver-api/thermal/sysfs-api, admin-guide/pm/cpufreq, ABI/testing/sysfs-class-devfreq; rails
of Jetson modules from the kernel's tegra234-p3767.dtsi and tegra234-p3701.dtsi; nvpmodel's files as JetPack 6 has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

RAPL = "sys/class/powercap"
ZONES = {
    "intel-rapl:0/name": "package-0",
    "intel-rapl:0/energy_uj": "262143000000",
    "intel-rapl:0/max_energy_range_uj": "262143328850",
    "intel-rapl:0:0/name": "core",
    "intel-rapl:0:0/energy_uj": "1",
    "intel-rapl:0:0/max_energy_range_uj": "262143328850",
    "intel-rapl:0:1/name": "dram",
    "intel-rapl:0:1/energy_uj": "5000000",
    "intel-rapl:0:1/max_energy_range_uj": "65712999613",
    "intel-rapl:1/name": "psys",
    "intel-rapl:1/energy_uj": "7",
    "intel-rapl:1/max_energy_range_uj": "262143328850",
    "intel-rapl-mmio:0/name": "package-0",  # the same package once more, by another road
    "intel-rapl-mmio:0/energy_uj": "9",
    "intel-rapl-mmio:0/max_energy_range_uj": "262143328850",
}
ORIN_NX = {
    "ina3221/1-0040/hwmon/hwmon1/in1_label": "VDD_IN",
    "ina3221/1-0040/hwmon/hwmon1/in1_input": "4960",
    "ina3221/1-0040/hwmon/hwmon1/curr1_input": "1200",
    "ina3221/1-0040/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "ina3221/1-0040/hwmon/hwmon1/in2_input": "4952",
    "ina3221/1-0040/hwmon/hwmon1/curr2_input": "312",
    "ina3221/1-0040/hwmon/hwmon1/in3_label": "VDD_SOC",
    "ina3221/1-0040/hwmon/hwmon1/in3_input": "4960",
    "ina3221/1-0040/hwmon/hwmon1/curr3_input": "280",
    "ina3221/1-0040/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "ina3221/1-0040/hwmon/hwmon1/in7_input": "1000",
    "ina3221/1-0040/hwmon/hwmon1/curr4_input": "1792",
}
AGX_ORIN = {
    "ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_GPU_SOC",
    "ina3221/1-0040/hwmon/hwmon3/in1_input": "5000",
    "ina3221/1-0040/hwmon/hwmon3/curr1_input": "2000",
    "ina3221/1-0040/hwmon/hwmon3/in2_label": "VDD_CPU_CV",
    "ina3221/1-0040/hwmon/hwmon3/in2_input": "5000",
    "ina3221/1-0040/hwmon/hwmon3/curr2_input": "1000",
    "ina3221/1-0040/hwmon/hwmon3/in3_label": "VIN_SYS_5V0",
    "ina3221/1-0040/hwmon/hwmon3/in3_input": "4968",
    "ina3221/1-0040/hwmon/hwmon3/curr3_input": "953",
    "ina3221/1-0041/hwmon/hwmon4/in1_label": "NC",
    "ina3221/1-0041/hwmon/hwmon4/in1_input": "0",
    "ina3221/1-0041/hwmon/hwmon4/curr1_input": "0",
    "ina3221/1-0041/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO",
    "ina3221/1-0041/hwmon/hwmon4/in2_input": "4968",
    "ina3221/1-0041/hwmon/hwmon4/curr2_input": "80",
}
NANO = {  # JetPack 4
    "ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN",
    "ina3221x/6-0040/iio:device0/in_power0_input": "2475",
    "ina3221x/6-0040/iio:device0/rail_name_1": "POM_5V_GPU",
    "ina3221x/6-0040/iio:device0/in_power1_input": "120",
}
MICROWATTS = {
    "ina3221/1-0040/hwmon/hwmon1/in1_label": "VDD_IN",
    "ina3221/1-0040/hwmon/hwmon1/power1_input": "5952000",
}


def build(root: Path, folder: str, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


CONDITIONS = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51093",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "48718",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",  # switched off
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600",
    "sys/devices/system/cpu/cpu11/cpufreq/scaling_cur_freq": "1510400",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000",
    "sys/class/devfreq/15340000.vic/cur_freq": "729600000",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_30W >",
}
