"""The engine "triton": gptq, awq and compressed-tensors bundles on server GPUs, with the CPU as a slow reference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgetune_runtime.backends.base import Arrays, Float, GreedyBackend, ImageFeatures, Int, ModelShape
from edgetune_runtime.backends.triton.model import Cache, Decoder, forward
from edgetune_runtime.backends.triton.packing import PackedLinear
from edgetune_runtime.backends.triton.vision import load_vision
from edgetune_runtime.backends.triton.weights import PackedCheckpoint, read_decoder
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.quant.layouts import LAYOUTS

if TYPE_CHECKING:
    from edgetune_runtime.backends.triton.step import Step

CACHE_STEP = 1024
"""The cache grows in steps of this many tokens: a decode graph belongs to one cache and takes a while to record."""

CHUNK = 16
"""Tokens that `greedy` decodes between two looks for a stop token."""


class TorchBackend(GreedyBackend):
    """Runs quantized checkpoints under torch, on CUDA with kernels of its own.

    Args:
        decoder: the decoder.
        tower: the vision tower, or None for text only.
        deepstack: how many decoder layers the tower's features are added after.
    """

    formats = tuple(LAYOUTS)

    def __init__(self, decoder: Decoder, tower: nn.Module | None = None, *, deepstack: int = 0) -> None:
        sizes = decoder.sizes
        super().__init__(
            ModelShape(
                hidden=sizes.hidden,
                vocabulary=sizes.vocabulary,
                deepstack=deepstack,
                layers=sizes.layers,
                kv_heads=sizes.kv_heads,
                head_dim=sizes.head_dim,
            )
        )
        self._decoder, self._tower = decoder, tower
        self._table = decoder.embedding.cpu()  # a look-up on the host is faster than a trip to the GPU
        self._cache = Cache.empty(decoder, 0)
        self._step: Step | None = None
        self._dense = PackedLinear.dense
        if decoder.device.type == "cuda":
            self._dense = _kernels().dequantize

    @classmethod
    def load(cls, bundle: Bundle, *, device: str, threads: int | None) -> TorchBackend:
        """Load a bundle that is a quantized checkpoint.

        Products are in bfloat16 on CUDA, or in float16 if the checkpoint's are, and in float32 on the CPU.

        Raises:
            InputError: the checkpoint is of a kind that the engine does not support, as one whose tower sees tiles.
            BundleError: the checkpoint is damaged.
            MissingDependency: device "cuda" without a GPU that torch can use, or without triton.
        """
        if not isinstance(bundle.spec, ImageSpec):
            raise InputError(
                f"{bundle.folder}: the engine triton runs vision towers of packed patches, and pictures of "
                f"{bundle.family} are prepared by {bundle.spec.rule!r}",
                hint="choose --engine onnx, or export --format onnx or trt",
            )
        if bundle.rope.rotary_dim != bundle.rope.head_dim:
            raise InputError(
                f"{bundle.folder}: the engine triton has no linear attention, and turns heads as a whole; layers of "
                f"{bundle.family} are others",
                hint="choose --engine onnx",
            )
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise MissingDependency(
                f"torch {torch.__version__} sees no CUDA device",
                hint="install a CUDA build of torch and NVIDIA's driver",
            )
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise MissingDependency(f"no GPU number {place.index}: the machine has {torch.cuda.device_count()}")
        if threads is not None:
            torch.set_num_threads(threads)
        with PackedCheckpoint(bundle) as checkpoint:
            dtype = torch.float32
            if place.type == "cuda":
                text = {**checkpoint.config, **checkpoint.config.get("text_config", {})}
                half = text.get("dtype", text.get("torch_dtype")) == "float16"
                dtype = torch.float16 if half else torch.bfloat16
            decoder = read_decoder(bundle, checkpoint, place, dtype)
            tower = load_vision(bundle, checkpoint, place, dtype)
        return cls(decoder, tower, deepstack=bundle.model["deepstack"])

    @torch.inference_mode()
    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """Run the vision tower."""
        if self._tower is None:
            raise InputError("this model was loaded without its vision tower")
        parameter = next(self._tower.parameters())
        pixels = torch.from_numpy(images["pixel_values"]).to(parameter.device, parameter.dtype)
        told = self._tower(pixels, grid_thw=torch.from_numpy(images["image_grid_thw"]).to(parameter.device))
        deepstack = getattr(told, "deepstack_features", None) or ()
        return ImageFeatures(_host(told.pooler_output), tuple(_host(features) for features in deepstack))

    def embed_impl(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        return _host(self._table[torch.from_numpy(token_ids)])

    def reserve_impl(self, length: int) -> None:
        """Make a larger cache when `length` tokens do not fit."""
        if length <= self._cache.capacity:
            return
        self._step = None
        self._cache = Cache.empty(self._decoder, -(-length // CACHE_STEP) * CACHE_STEP)
        if self._decoder.device.type == "cuda":
            self._step = _kernels().Step(self._decoder, self._cache)

    def rewind_impl(self, length: int) -> bool:
        """Nothing is read after the length that a call tells."""
        return True

    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens and return the last one's logits."""
        return self._forward(self.length, embeddings, positions, deepstack)

    def _forward(self, past: int, embeddings: Float, positions: Int, deepstack: Sequence[Float] = ()) -> Float:
        """The logits after tokens that follow the first `past` of the cache."""
        device = self._decoder.device
        states, places = torch.from_numpy(embeddings), torch.from_numpy(positions)
        if self._step is not None and len(embeddings) == 1 and not deepstack:
            self._step.states.copy_(states[0])
            self._step.positions.copy_(places[:, 0])
            self._step.past.fill_(past)
            self._step.forward()
            return _host(self._step.logits)
        added = [torch.from_numpy(features).to(device) for features in deepstack]
        run = partial(forward, self._decoder, self._cache, past, dense=self._dense)
        return _host(run(states.to(device), places.to(device), added))

    def greedy_impl(self, token: int, position: int, count: int, stop: Collection[int]) -> list[int]:
        """Choose tokens where they are computed; the host looks only every `CHUNK` of them."""
        tokens: list[int] = []
        while len(tokens) < count and not (tokens and tokens[-1] in stop):
            past = self.length + len(tokens)
            found = self._steps(past, token, position, min(CHUNK, count - len(tokens)))
            end = next((i + 1 for i, one in enumerate(found) if one in stop), len(found))
            tokens += found[:end]
            token, position = tokens[-1], position + end
        return tokens

    def close_impl(self) -> None:
        """Drop the weights, the cache and its recorded steps."""
        del self._step, self._cache, self._decoder, self._tower, self._table

    def _steps(self, past: int, token: int, position: int, count: int) -> list[int]:
        """The tokens after the first `past` of the cache and `token`, without regard to stop tokens."""
        step = self._step
        if step is None:
            found = []
            for number in range(count):
                places = np.full((3, 1), position + number)
                token = int(self._forward(past + number, self.embed_impl(np.array([token])), places).argmax())
                found.append(token)
            return found
        step.token.fill_(token)
        step.positions.fill_(position)
        step.past.fill_(past)
        for _ in range(count):
            step.greedy()
        return [int(one) for one in step.tokens[past : past + count].tolist()]


def _kernels() -> ModuleType:
    """The module of the Triton kernels, imported only where they run."""
    try:
        from edgetune_runtime.backends.triton import step
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "triton is not installed", hint=install_command("triton", "edgetune-runtime")
        ) from error
    return step


def _host(tensor: torch.Tensor) -> Float:
    array: Float = tensor.float().cpu().numpy()
    return array
