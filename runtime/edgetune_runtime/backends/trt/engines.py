"""Engines beside a TensorRT bundle: which there are, what each runs on, and building new ones.

An engine (a plan, in TensorRT's words) runs only on the TensorRT version and compute capability that it was built with.
They lie in `engines/TARGET/` of the bundle, with `engines.json` beside them that says what they are; the engine files
hold nothing but TensorRT's own bytes. `manifest.json` lists only what export wrote, so a device may add engines and the
bundle stays verifiable.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_runtime.backends.trt.build import BuildJob, Profile, build_apart
from edgetune_runtime.backends.trt.library import TITLES, Library
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import DEVICE_FILES, sha256_file

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

SIDECAR = "engines.json"
TIMING_CACHE = "timing.cache"
SCHEMA = 1


@dataclass(frozen=True)
class Graph:
    """A network of the bundle: its ONNX file, the ranges of its free dimensions, and a hash of all its files."""

    model: Path
    profiles: tuple[Profile, ...]
    source: str


@dataclass(frozen=True)
class Engines:
    """The engines of one target.

    Attributes:
        folder: where they lie.
        flavour: "tensorrt" or "tensorrt_rtx".
        version: of that library.
        capability: compute capability, such as "8.7".
        parts: graph name -> file, sha256, size, source (hash of the graph's files), and what `Built` holds.
    """

    folder: Path
    flavour: str
    version: str
    capability: str
    parts: Mapping[str, Mapping[str, Any]]

    @property
    def title(self) -> str:
        """For people."""
        return f"{TITLES.get(self.flavour, self.flavour)} {self.version} on compute capability {self.capability}"

    def path(self, part: str, source: str) -> Path:
        """The engine file of a graph.

        Raises:
            BundleError: it is missing, was changed, or was built from another graph than `source`.
        """
        fix = f"build it again: edgetune-run build-engine {self.folder.parent.parent} --force"
        entry = self.parts.get(part)
        if entry is None:
            raise BundleError(f"{self.folder / SIDECAR}: no engine for the {part}", hint=fix)
        path = self.folder / Path(entry["file"]).name
        if not path.is_file():
            raise BundleError(f"{path}: listed in {SIDECAR} but missing", hint=fix)
        if entry["source"] != source:
            raise BundleError(f"{path}: built from another export than this bundle's {part}", hint=fix)
        if path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
            raise BundleError(f"{path}: differs from its sha256 in {SIDECAR}: the engine was changed", hint=fix)
        return path


def graphs_of(bundle: Bundle) -> dict[str, Graph]:
    """The networks of a bundle by name."""
    hashes = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}
    return make_graphs(bundle.folder, bundle.manifest["result"]["bundle"], hashes)


def make_graphs(folder: Path, fields: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Graph]:
    """The same from a manifest's "bundle" fields and the sha256 of the files."""
    graphs = {}
    for name, profiles in fields["trt"]["profiles"].items():
        file = fields["files"][name]
        own = "".join(f"{other}\0{hashes[other]}\n" for other in (file, f"{file}.data") if other in hashes)
        graphs[name] = Graph(folder / file, tuple(profiles), sha256(own.encode()).hexdigest())
    return graphs


def read_engines(bundle: Path) -> list[Engines]:
    """All engines of a bundle.

    Raises:
        BundleError: a sidecar file cannot be read.
    """
    found = []
    for path in sorted((bundle / DEVICE_FILES).glob(f"[!.]*/{SIDECAR}")):  # not what a killed build left
        try:
            told = read_json(path)
            if told["schema"] != SCHEMA:
                raise ValueError(f"schema {told['schema']!r}, this version reads {SCHEMA}")
            engines = Engines(path.parent, told["library"], told["version"], told["capability"], told["parts"])
        except (InputError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{path}: not a list of engines: {error!r}", hint="delete the folder, build again"
            ) from error
        found.append(engines)
    return found


def choose(bundle: Path, libraries: list[Library], capability: str) -> tuple[Engines, Library]:
    """The engines that run here.

    Raises:
        BundleError: there are none for this device and these versions; the message says which there are.
    """
    found = read_engines(bundle)
    for library in libraries:
        for engines in found:
            if (engines.flavour, engines.version, engines.capability) == (library.flavour, library.version, capability):
                return engines, library
    here = " or ".join(library.title for library in libraries)
    there = "; ".join(engines.title for engines in found) or "none"
    raise BundleError(
        f"{bundle}: no engine for {here} on compute capability {capability}; engines here: {there}",
        hint=f"an engine runs only where it was built for: edgetune-run build-engine {bundle}",
    )


def build_engines(
    bundle: Path,
    graphs: Mapping[str, Graph],
    library: Library,
    capability: str,
    *,
    listed: Collection[str] = (),
    force: bool = False,
    progress: Callable[[str], object] = lambda part: None,
) -> tuple[Engines, bool]:
    """Build the engines of one target, unless they are there.

    Args:
        bundle: the folder to put them in.
        graphs: what to build, by name.
        library: builds them.
        capability: compute capability to build for.
        listed: names of the files in the bundle's manifest, which must stay as they are.
        force: build even when nothing changed.
        progress: called with the name of each graph as its build starts.

    Returns:
        The engines, and whether they were built now.

    Raises:
        BundleError: the engines would replace some that export wrote.
        EdgetuneError: a build failed; nothing half-built is left.
    """
    folder = bundle / DEVICE_FILES / f"{library.flavour}-{library.version}-sm{capability.replace('.', '')}"
    for engines in read_engines(bundle):
        if engines.folder == folder and not force and _current(engines, graphs):
            return engines, False
    if any(name.startswith(f"{DEVICE_FILES}/{folder.name}/") for name in listed):
        raise BundleError(f"{folder}: these engines are part of the export", hint="export again to build them again")
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if (folder / TIMING_CACHE).is_file():
        shutil.copyfile(folder / TIMING_CACHE, work / TIMING_CACHE)
    parts: dict[str, dict[str, Any]] = {}
    try:
        for name, graph in graphs.items():
            progress(name)
            path = work / f"{name}.engine"
            built = build_apart(
                BuildJob(
                    flavour=library.flavour,
                    model=str(graph.model),
                    profiles=graph.profiles,
                    engine=str(path),
                    target=capability,
                    timing_cache=str(work / TIMING_CACHE),
                )
            )
            size = path.stat().st_size
            parts[name] = {"file": path.name, "sha256": sha256_file(path), "size": size, "source": graph.source}
            parts[name] |= asdict(built)
        engines = Engines(folder, library.flavour, library.version, capability, parts)
        (work / SIDECAR).write_text(json.dumps(_to_json(engines), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return engines, True


def _current(engines: Engines, graphs: Mapping[str, Graph]) -> bool:
    """Whether all engines are there, intact and of these graphs."""
    try:
        for name, graph in graphs.items():
            engines.path(name, graph.source)
    except BundleError:
        return False
    return True


def _to_json(engines: Engines) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "library": engines.flavour,
        "version": engines.version,
        "capability": engines.capability,
        "parts": engines.parts,
    }
