"""A bundle once more, with a smaller limit of the pictures' area as its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune_core.stage import StageResult, run_stage
from edgetune_export.job import bound_pixels
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.manifest import DEVICE_FILES, MANIFEST


def write_bounded(bundle: Path, max_pixels: int, output: Path, *, force: bool = False) -> StageResult:
    """Copy a bundle, less what a device added to it, and write the limit into its manifest and preprocessor config.

    Args:
        bundle: folder of the bundle.
        max_pixels: largest area of a resized picture, in pixels.
        output: folder to write.
        force: write again even when nothing has changed.

    Raises:
        InputError: the area is over the bundle's own, or too little for a picture.
        BundleError: the folder is not an intact bundle.
    """
    told = Bundle.load(bundle, verify=False)  # `run_stage` compares the files
    smaller = told.bounded(max_pixels)
    spec = smaller.spec
    assert isinstance(spec, ImageSpec)

    def build(work: Path) -> Mapping[str, Any]:
        shutil.copytree(bundle, work, ignore=shutil.ignore_patterns(MANIFEST, DEVICE_FILES), dirs_exist_ok=True)
        bound_pixels(work, spec)
        result: dict[str, Any] = dict(told.manifest["result"])
        limits = result["bundle"]["limits"] | {"max_image_tokens": smaller.limits.max_image_tokens}
        return result | {"bundle": result["bundle"] | {"image": spec.to_dict(), "limits": limits}}

    settings = dict(told.manifest.get("settings") or {})
    return run_stage(
        "export",
        output,
        inputs={"bundle": bundle},
        settings=settings | {"max_pixels": max_pixels},
        build=build,
        force=force,
    )
