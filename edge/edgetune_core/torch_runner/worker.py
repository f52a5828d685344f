"""Answer the records of an evaluation set with a Hugging Face checkpoint under torch: the row to compare bundles with.

Writes the same JSON as `edgetune_runtime.bench.worker`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from edgetune_core.torch_runner.model import TorchModel
from edgetune_runtime.answer import Runner
from edgetune_runtime.bench.worker import add_arguments, run
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.threads import check_threads


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="edgetune_core.torch_runner.worker", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="Hugging Face checkpoint folder")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter to apply, unmerged")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    header: dict[str, Any] = {"engine": "torch", "device": options.device}

    def load() -> tuple[Runner, Preprocessing]:
        if threads := check_threads(options.threads):
            torch.set_num_threads(threads)
        header["threads"] = torch.get_num_threads()
        model = TorchModel(
            options.checkpoint, adapter=options.adapter, device=options.device, max_pixels=options.max_pixels
        )
        header["precision"] = model.dtype
        return model, model.spec

    folders = [options.checkpoint, *([options.adapter] if options.adapter else [])]
    return run(load, options, folders=folders, header=header)


if __name__ == "__main__":
    sys.exit(main())
