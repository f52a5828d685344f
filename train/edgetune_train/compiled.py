"""Language blocks that torch compiles (`torch.compile`): once for all of them, whatever the length of a batch.

A block calls some 250 small kernels in a training step, and a fast GPU waits for most of them. Compiled, norms, rotary
embedding, gate and casts are a few, and Python has one function to call. Compiling takes up to a minute, less where
torch finds what it compiled before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from edgetune_runtime.errors import MissingDependency


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile blocks for training; validation, whose batches have a cache, runs them as they are.

    Raises:
        MissingDependency: there is no compiler for what torch writes.
    """
    _require_compilers()
    for block in blocks:
        plain: Callable[..., Any] = block.forward
        compiled = torch.compile(plain, dynamic=True)
        block.forward = partial(_forward, block, plain, compiled)


def _forward(
    block: nn.Module, plain: Callable[..., Any], compiled: Callable[..., Any], *words: Any, **named: Any
) -> Any:
    return (compiled if torch.is_grad_enabled() and block.training else plain)(*words, **named)


def _require_compilers() -> None:
    """Raise `MissingDependency` for what torch would miss in the middle of the first step."""
    variable, names = ("CC", ("gcc", "clang", "cc")) if torch.cuda.is_available() else ("CXX", ("g++", "clang++"))
    if not (os.environ.get(variable) or any(map(shutil.which, names))):
        raise MissingDependency(
            f"--compile: there is no {' or '.join(names)}, which torch.compile needs",
            hint=f"install one or point {variable} to it, or leave --compile out",
        )
    if torch.cuda.is_available() and find_spec("triton") is None:
        raise MissingDependency(
            "--compile: the Python package 'triton' is not installed", hint="pip install triton, or leave --compile out"
        )
