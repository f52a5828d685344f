"""`edgetune-run build-engine`: TensorRT engines for a bundle, on the device that will run them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.terminal import say


def build_parser() -> argparse.ArgumentParser:
    """The command line of `edgetune-run build-engine`."""
    parser = argparse.ArgumentParser(
        prog="edgetune-run build-engine",
        description="Build TensorRT engines from a bundle of `edgetune export --format trt`, for this machine's GPU.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle; engines go to its engines/")
    parser.add_argument(
        "--target",
        metavar="SM",
        help="build for another GPU of this compute capability, such as sm86; takes TensorRT-RTX and needs no GPU here",
    )
    parser.add_argument(
        "--library", metavar="NAME", help="tensorrt or tensorrt_rtx (default: the one that is installed)"
    )
    parser.add_argument("--force", action="store_true", help="build even where the engines exist")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    parser.add_argument("--no-verify", action="store_true", help="start without checking the bundle's sha256 sums")
    return parser


def run(options: argparse.Namespace) -> None:
    """Build, and print what each engine took.

    Raises:
        BundleError: not a TensorRT bundle, TensorRT refuses a graph, or export built these engines already.
        InputError: no such target.
        MissingDependency: TensorRT is not installed, or there is no GPU.
    """
    from edgetune_runtime.backends.trt.cuda import Cuda
    from edgetune_runtime.backends.trt.engines import build_engines, graphs_of
    from edgetune_runtime.backends.trt.library import load_library
    from edgetune_runtime.bundle import Bundle

    target = None if options.target is None else parse_target(options.target)
    bundle = Bundle.load(options.bundle, verify=not options.no_verify)
    if bundle.format != "trt":
        raise BundleError(
            f"{bundle.folder}: a bundle of format {bundle.format!r} has no TensorRT engines",
            hint="export with --format trt",
        )
    library = load_library(options.library or ("tensorrt_rtx" if target else None))
    capability = target or Cuda().capability
    told: dict[str, Any] = {"bundle": str(bundle.folder), "library": library.flavour, "version": library.version}
    if not options.json:
        say(f"{library.title}, compute capability {capability}")
    engines, new = build_engines(
        bundle.folder,
        graphs_of(bundle),
        library,
        capability,
        listed=bundle.manifest["files"],
        force=options.force,
        progress=lambda part: None if options.json else say(f"  building {part} ..."),
    )
    told |= {"capability": capability, "folder": str(engines.folder), "built": new, "parts": engines.parts}
    if options.json:
        say(json.dumps(told, indent=2))
        return
    for name, part in engines.parts.items():
        cost = f"{part['seconds']:.1f} s, {part['peak_rss_mb']:.0f} MB of memory"
        say(f"  {name}: {part['size'] / 1e6:.1f} MB; built in {cost}")
    say(f"{engines.folder}: {'written' if new else 'unchanged, kept'}")


def parse_target(text: str) -> str:
    """Read "sm86" or "8.6" as the compute capability "8.6".

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"(?:sm)?(\d+)\.?(\d)", text.strip().lower())
    if match is None:
        raise InputError(f"unknown target {text!r}", hint="give a compute capability, such as sm86 or 8.7")
    return f"{match[1]}.{match[2]}"
