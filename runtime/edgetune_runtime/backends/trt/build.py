"""Build one TensorRT engine from an ONNX graph, in a process of its own.

A build takes gigabytes and runs much native code: where it is killed, the caller gets a message instead of dying with
it, and the memory it took is known. `python -m edgetune_runtime.backends.trt.build` reads a `BuildJob` as JSON from
stdin and writes one JSON line to stdout: {"built": ...} or {"error": ..., "hint": ..., "code": ...}.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_runtime.backends.trt.cuda import Cuda
from edgetune_runtime.backends.trt.library import Library, load_library, make_logger
from edgetune_runtime.errors import BundleError, EdgetuneError, InputError
from edgetune_runtime.files import write_whole

if TYPE_CHECKING:
    import tensorrt

Profile = Mapping[str, Sequence[Sequence[int]]]
"""Input name -> its smallest, most likely and largest shape."""


@dataclass(frozen=True)
class BuildJob:
    """What to build.

    Attributes:
        flavour: see `trt_library.LIBRARIES`.
        model: the ONNX graph.
        profiles: ranges of the free dimensions, one a use of the network.
        engine: the file to write.
        target: compute capability such as "8.6"; None is that of the GPU in this machine.
        timing_cache: file with the measurements of earlier builds, read and written; None is none.
    """

    flavour: str
    model: str
    profiles: Sequence[Profile]
    engine: str
    target: str | None = None
    timing_cache: str | None = None


@dataclass(frozen=True)
class Built:
    """What a build took: seconds by the clock and of CPU, and the largest resident memory in MB (10^6 bytes)."""

    seconds: float
    cpu_seconds: float
    peak_rss_mb: float


def build_apart(job: BuildJob) -> Built:
    """Build in a child process.

    Raises:
        EdgetuneError: what `build` raises, or the process was killed.
    """
    child = subprocess.run(
        [sys.executable, "-m", "edgetune_runtime.backends.trt.build"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, Any] = {}
    with suppress(ValueError, IndexError):
        told = json.loads(child.stdout.strip().splitlines()[-1])
    if "built" in told:
        return Built(**told["built"])
    if "error" in told:
        error = EdgetuneError(told["error"], hint=told["hint"])
        error.exit_code = told["code"]
        raise error
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        fix = "it may have run out of memory: stop other programs, add swap" if name == "SIGKILL" else None
        raise EdgetuneError(f"{job.model}: the build was stopped by {name}", hint=fix)
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    raise EdgetuneError(f"{job.model}: the build failed with exit code {child.returncode}: {last}")


def build(job: BuildJob, library: Library) -> Built:
    """Build here and write the engine file.

    Raises:
        InputError: the target is not one that the library builds for.
        BundleError: the parser or the builder refuses the graph.
        MissingDependency: no GPU where one is needed.
    """
    started = time.perf_counter()
    trt = library.module
    if job.target is None or library.flavour == "tensorrt":
        here = Cuda().capability  # before TensorRT is asked: its own message without a GPU is a code number
        if job.target not in (None, here):
            raise InputError(
                f"{library.title} builds for the GPU it runs on, {here}, not for {job.target}",
                hint="build on the device, or with TensorRT-RTX",
            )
    logger, errors = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.model):
        reasons = [str(parser.get_error(number).desc()) for number in range(parser.num_errors)]
        raise BundleError(f"{job.model}: {library.title} cannot read it: {'; '.join(reasons or errors)[:500]}")
    config = builder.create_builder_config()
    if library.flavour == "tensorrt_rtx" and job.target is not None:
        _set_target(trt, config, job.target)
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, likely, largest) in shapes.items():
            profile.set_shape(name, tuple(smallest), tuple(likely), tuple(largest))
        config.add_optimization_profile(profile)
    cache = _open_cache(config, job.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(
            f"{job.model}: {library.title} cannot build it: {'; '.join(errors)[:500] or 'no reason given'}"
        )
    write_whole(Path(job.engine), plan)
    if cache is not None and job.timing_cache is not None:
        write_whole(Path(job.timing_cache), cache.serialize())
    return Built(round(time.perf_counter() - started, 3), round(time.process_time(), 3), round(_peak_bytes() / 1e6, 1))


def _peak_bytes() -> int:
    """Largest resident memory of this program. Not getrusage's: that begins with the parent's, before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


def _network_flags(trt: Any) -> int:
    """Strongly typed, which is a choice on TensorRT 10 and may be the only kind later; values move, so by name."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def targets(trt: Any) -> list[str]:
    """Compute capabilities that TensorRT-RTX builds for, such as "8.6"."""
    names = (name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return [f"{name[:-1]}.{name[-1]}" for name in names]


def _set_target(trt: Any, config: tensorrt.IBuilderConfig, target: str) -> None:
    if target not in targets(trt):
        raise InputError(f"TensorRT-RTX does not build for {target}", hint=f"it builds for {', '.join(targets(trt))}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}"), 0)


def _open_cache(config: tensorrt.IBuilderConfig, path: str | None) -> tensorrt.ITimingCache | None:
    """Give the builder an earlier build's measurements, where the file is from this version and GPU."""
    if path is None:
        return None
    content = Path(path).read_bytes() if Path(path).is_file() else b""
    for candidate in (content, b""):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def main() -> int:
    """Build what stdin says."""
    job = BuildJob(**json.load(sys.stdin))
    try:
        told: dict[str, Any] = {"built": asdict(build(job, load_library(job.flavour)))}
    except EdgetuneError as error:
        told = {"error": str(error), "hint": error.hint, "code": error.exit_code}
    print(json.dumps(told))
    return 0 if "built" in told else 1


if __name__ == "__main__":
    sys.exit(main())
