"""The engine "triton": gptq, awq and compressed-tensors bundles on server GPUs, with the CPU as a slow reference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgetune_runtime.backends import Float, ImageFeatures, Int
from edgetune_runtime.backends.triton.model import Cache, Decoder, forward
from edgetune_runtime.backends.triton.packing import Linear
from edgetune_runtime.backends.triton.vision import load_vision
from edgetune_runtime.backends.triton.weights import Checkpoint, read_decoder
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from edgetune_runtime.backends.triton.step import Step

CACHE_STEP = 1024
"""The cache grows in steps of this many tokens: a decode graph belongs to one cache and takes a while to record."""

CHUNK = 16
"""Tokens that `greedy` decodes between two looks for a stop token."""


def load(bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> TorchBackend:
    """Load a bundle: the entry point of the engine.

    Products are in bfloat16 on CUDA, or in float16 if the checkpoint's are, and in float32 on the CPU.

    Raises:
        InputError: the bundle is no checkpoint, or of a kind the engine does not support.
        BundleError: the checkpoint is damaged.
        MissingDependency: device "cuda" without a GPU that torch can use, or without triton.
    """
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependency(
            f"torch {torch.__version__} sees no CUDA device", hint="install a CUDA build of torch and NVIDIA's driver"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    with Checkpoint(bundle) as checkpoint:
        dtype = torch.float32
        if place.type == "cuda":
            text = {**checkpoint.config, **checkpoint.config.get("text_config", {})}
            half = text.get("dtype", text.get("torch_dtype")) == "float16"
            dtype = torch.float16 if half else torch.bfloat16
        decoder = read_decoder(bundle, checkpoint, place, dtype)
        tower = load_vision(bundle, checkpoint, place, dtype)
    return TorchBackend(decoder, tower)


class TorchBackend:
    """Implements `edgetune_runtime.backends.GreedyBackend`.

    Args:
        decoder: the decoder.
        tower: the vision tower, or None for text only.
    """

    def __init__(self, decoder: Decoder, tower: nn.Module | None = None) -> None:
        self._decoder, self._tower = decoder, tower
        self._table = decoder.embedding.cpu()  # a look-up on the host is faster than a trip to the GPU
        self._cache = Cache.empty(decoder, 0)
        self._past = 0
        self._step: Step | None = None
        self._dense = Linear.dense
        if decoder.device.type == "cuda":
            self._dense = _kernels().dequantize

    @torch.inference_mode()
    def encode_images(self, pixel_values: Float, grids: Int) -> ImageFeatures:
        """Run the vision tower."""
        if self._tower is None:
            raise InputError("this model was loaded without its vision tower")
        parameter = next(self._tower.parameters())
        pixels = torch.from_numpy(pixel_values).to(parameter.device, parameter.dtype)
        told = self._tower(pixels, grid_thw=torch.from_numpy(grids).to(parameter.device))
        deepstack = getattr(told, "deepstack_features", None) or ()
        return ImageFeatures(_host(told.pooler_output), tuple(_host(features) for features in deepstack))

    def embed(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        return _host(self._table[torch.from_numpy(token_ids)])

    def reserve(self, length: int) -> None:
        """Empty the cache, and make a larger one when `length` tokens do not fit."""
        self._past = 0
        if length <= self._cache.capacity:
            return
        self._step = None
        self._cache = Cache.empty(self._decoder, -(-length // CACHE_STEP) * CACHE_STEP)
        if self._decoder.device.type == "cuda":
            self._step = _kernels().Step(self._decoder, self._cache)

    def forward(self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = ()) -> Float:
        """Append tokens and return the last one's logits."""
        count = len(embeddings)
        self._require_room(count)
        device = self._decoder.device
        states, places = torch.from_numpy(embeddings), torch.from_numpy(positions)
        if self._step is not None and count == 1 and not deepstack:
            self._step.states.copy_(states[0])
            self._step.positions.copy_(places[:, 0])
            self._step.past.fill_(self._past)
            self._step.forward()
            logits = self._step.logits
        else:
            added = [torch.from_numpy(features).to(device) for features in deepstack]
            run = partial(forward, self._decoder, self._cache, self._past, dense=self._dense)
            logits = run(states.to(device), places.to(device), added)
        self._past += count
        return _host(logits)

    def greedy(self, token: int, position: int, *, count: int, stop: Collection[int]) -> list[int]:
        """Append `token` at a position and the most likely tokens after it, all but the last one returned.

        On CUDA the tokens stay there, and the host looks only every `CHUNK` of them.

        Args:
            token: the token to go on from.
            position: its position on all three axes.
            count: most tokens to generate.
            stop: tokens that end the answer.

        Returns:
            Generated tokens, up to and including the first of `stop`.
        """
        self._require_room(count)
        tokens: list[int] = []
        while len(tokens) < count and not (tokens and tokens[-1] in stop):
            found = self._steps(token, position, min(CHUNK, count - len(tokens)))
            end = next((i + 1 for i, one in enumerate(found) if one in stop), len(found))
            tokens += found[:end]
            self._past += end
            token, position = tokens[-1], position + end
        return tokens

    def _steps(self, token: int, position: int, count: int) -> list[int]:
        """The next tokens, without regard to stop tokens; the cache holds more than `past` afterwards."""
        step = self._step
        if step is None:
            past, found = self._past, []
            for place in range(position, position + count):
                logits = self.forward(self.embed(np.array([token])), np.full((3, 1), place))
                token = int(logits.argmax())
                found.append(token)
            self._past = past
            return found
        step.token.fill_(token)
        step.positions.fill_(position)
        step.past.fill_(self._past)
        for _ in range(count):
            step.greedy()
        return [int(one) for one in step.tokens[self._past : self._past + count].tolist()]

    def _require_room(self, count: int) -> None:
        if self._past + count > self._cache.capacity:
            needed = self._past + count
            raise InputError(f"{needed} tokens in a cache of {self._cache.capacity}", hint="reserve more")


def _kernels() -> ModuleType:
    """The module of the Triton kernels, imported only where they run."""
    try:
        from edgetune_runtime.backends.triton import step
    except ModuleNotFoundError as error:
        raise MissingDependency("triton is not installed", hint='pip install "edgetune-runtime[triton]"') from error
    return step


def _host(tensor: torch.Tensor) -> Float:
    array: Float = tensor.float().cpu().numpy()
    return array
