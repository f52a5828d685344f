"""Each family's checkpoint with tiny weights, and the rest of one with the published sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import build_qwen2_5_vl, build_qwen3_vl
from edgetune.cli import cli
from families.checkpoints import BUILDERS
from shared import once
from train.conftest import write_records

Build = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Gives the folder of a family's tiny checkpoint, which must not be changed."""
    builders = {**BUILDERS, "qwen2_5_vl": build_qwen2_5_vl, "qwen3_vl": build_qwen3_vl}
    return lambda name: once(tmp_path_factory, f"tiny_{name}", builders[name])


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Gives the folder of a family's checkpoint without weights, with the published sizes of pictures."""
    return lambda name: once(tmp_path_factory, f"published_{name}", partial(BUILDERS[name], weights=False))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of six records about three small pictures."""
    return write_records(tmp_path_factory.mktemp("records") / "train")


def picture(width: int, height: int) -> Image.Image:
    """Return a picture with detail at several scales, the same for the same size (pixels)."""
    generator = np.random.default_rng(width * 10_000 + height)
    coarse = generator.integers(0, 255, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def run(*words: object) -> None:
    """Run a command of `edgetune` in this process."""
    cli.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="session")
def merged(tiny: Build, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Gives the folder in which a family's adapter and merged checkpoint are."""
    done: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            options = ["--epochs", 2, "--batch-size", 3, "--rank", 4, "--learning-rate", 0.02, "--precision", "fp32"]
            run("train", "--checkpoint", tiny(name), "--data", data, "--output", folder / "adapter", *options)
            run("merge", "--checkpoint", tiny(name), "--adapter", folder / "adapter", "--output", folder / "merged")
            done[name] = folder
        return done[name]

    return make
