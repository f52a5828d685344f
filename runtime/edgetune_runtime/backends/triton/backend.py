"""The engine "triton": gptq, awq and compressed-tensors bundles on server GPUs, with the CPU as a slow reference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from edgetune_runtime.backends.base import GreedyBackend
from edgetune_runtime.backends.triton.graph import current
from edgetune_runtime.backends.triton.model import Cache, Decoder, forward
from edgetune_runtime.backends.triton.packing import PackedLinear
from edgetune_runtime.backends.triton.vision import Tower, load_vision
from edgetune_runtime.backends.triton.weights import PackedCheckpoint, read_decoder
from edgetune_runtime.backends.values import Arrays, Float, ImageFeatures, Int, ModelShape
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.quant.layouts import LAYOUTS

if TYPE_CHECKING:
    from edgetune_runtime.backends.triton.fused import Fused

CACHE_STEP = 1024
"""Where the cache cannot be made for the longest sequence at once, it grows in steps of this many tokens."""

CACHE_SHARE = 0.25
"""Of the free memory: what a cache for the longest sequence may take. Graphs belong to one cache and take a second to
record, so a cache that never grows is worth memory that nobody else needs."""

CHUNK = 16
"""Tokens that `greedy` decodes between two looks for a stop token."""


class TorchBackend(GreedyBackend):
    """Runs quantized checkpoints under torch, on CUDA with kernels of its own.

    Args:
        decoder: the decoder.
        tower: the vision tower, or None for text only.
        deepstack: how many decoder layers the tower's features are added after.
        max_length: tokens of the longest sequence that will be asked for; 0 if nobody knows.
    """

    formats = tuple(LAYOUTS)
    speculates = True
    branches = True

    def __init__(
        self, decoder: Decoder, tower: Tower | None = None, *, deepstack: int = 0, max_length: int = 0
    ) -> None:
        sizes = decoder.sizes
        super().__init__(
            ModelShape(
                hidden=sizes.hidden,
                vocabulary=sizes.vocabulary,
                deepstack=deepstack,
                layers=sizes.layers,
                kv_heads=sizes.kv_heads,
                head_dim=sizes.head_dim,
                raw_pixels=tower is not None,
            )
        )
        self._decoder, self._tower = decoder, tower
        self._table = decoder.embedding.cpu()  # a look-up on the host is faster than a trip to the GPU
        self._cache = Cache.empty(decoder, 0)
        self._fused: Fused | None = None
        self._several = decoder  # what passes over several tokens read
        self._max_length = max_length

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
        return cls(decoder, tower, deepstack=bundle.model["deepstack"], max_length=bundle.limits.max_length)

    @torch.inference_mode()
    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """Run the vision tower."""
        if self._tower is None:
            raise InputError("this model was loaded without its vision tower")
        with current(self._tower.device):
            pixels, grids = (torch.from_numpy(images[name]) for name in ("pixel_values", "image_grid_thw"))
            features = self._tower.encode(pixels, grids)
            host = torch.empty(features.shape, dtype=torch.float32, pin_memory=features.is_cuda)
            embeddings, *deepstack = host.copy_(features).numpy()
            kept = features.clone() if features.is_cuda else None
        return ImageFeatures(embeddings, tuple(deepstack), kept)

    @torch.inference_mode()
    def read_pictures_impl(
        self, token_ids: Int, positions: Int, places: npt.NDArray[np.bool_], image: ImageFeatures
    ) -> None:
        """Put features in their places where they are: on the GPU, if it has encoded the picture."""
        if self._fused is None or image.kept is None:
            super().read_pictures_impl(token_ids, positions, places, image)
            return
        device = self._decoder.device
        with current(device):
            ids, where = (torch.from_numpy(array).to(device) for array in (token_ids, np.flatnonzero(places)))
            states = self._decoder.embedding[ids].float()
            states[where] = image.kept[0].float()
            added = [torch.zeros_like(states).index_copy_(0, where, features.float()) for features in image.kept[1:]]
            self._fused.forward(self.length, states, torch.from_numpy(positions), added, at=())

    def embed_impl(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        return _host(self._table[torch.from_numpy(token_ids)])

    def reserve_impl(self, length: int) -> None:
        """Make a larger cache when `length` tokens do not fit, and record the graphs that belong to it."""
        if length <= self._cache.capacity:
            return
        decoder = self._decoder
        self._fused, self._cache = None, Cache.empty(decoder, 0)
        capacity = -(-length // CACHE_STEP) * CACHE_STEP
        if decoder.device.type != "cuda":
            self._cache = Cache.empty(decoder, capacity)
            return
        with current(decoder.device):
            self._prepare(capacity)

    def _prepare(self, capacity: int) -> None:
        """Make a cache on the GPU and record the passes that write it."""
        decoder = self._decoder
        if self._several is decoder:
            self._several = _kernels().unpacked(decoder)
        free, _ = torch.cuda.mem_get_info(decoder.device)
        if Cache.nbytes(decoder, self._max_length) <= free * CACHE_SHARE:
            capacity = max(capacity, self._max_length)
        self._cache = Cache.empty(decoder, capacity)
        self._fused = _kernels().Fused(decoder, self._several, self._cache, self.shape.deepstack, self._answer_head())
        with torch.inference_mode():
            self._fused.prepare()

    def rewind_impl(self, length: int) -> bool:
        """Nothing is read after the length that a call tells."""
        return True

    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens and return the last one's logits."""
        logits: Float = self._forward(self.length, embeddings, positions, deepstack)[0]
        return logits

    def forward_at_impl(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float], at: tuple[int, ...]
    ) -> Float:
        """Append tokens in one pass and return the logits after some of them."""
        return self._forward(self.length, embeddings, positions, deepstack, at=at)

    def answers_at_impl(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float], at: tuple[int, ...]
    ) -> Float:
        """As `forward_at_impl`, with the head's outputs for the answer's tokens alone."""
        return self._forward(self.length, embeddings, positions, deepstack, at=at, answers=True)

    def branches_at_impl(
        self, embeddings: Float, positions: Int, sees: npt.NDArray[np.bool_], at: tuple[int, ...], answers: bool
    ) -> Float:
        """Append tokens of which each sees some of those before it."""
        return self._forward(self.length, embeddings, positions, at=at, sees=torch.from_numpy(sees), answers=answers)

    @torch.inference_mode()
    def _forward(
        self,
        past: int,
        embeddings: Float,
        positions: Int,
        deepstack: Sequence[Float] = (),
        *,
        at: Sequence[int] = (-1,),
        sees: torch.Tensor | None = None,
        answers: bool = False,
    ) -> Float:
        """The logits [len(at), V] after tokens that follow the first `past` of the cache."""
        states, places, *added = (torch.from_numpy(array) for array in (embeddings, positions, *deepstack))
        if self._fused is not None:
            with current(self._decoder.device):
                return _host(self._fused.forward(past, states, places, added, at=at, sees=sees, answers=answers))
        head = self._answer_head() if answers else None
        return _host(forward(self._decoder, self._cache, past, states, places, added, at=at, sees=sees, head=head))

    def _answer_head(self) -> PackedLinear | None:
        """The head's outputs for `answer_tokens`, or None without any."""
        if not len(self.answer_tokens):
            return None
        return self._decoder.head.outputs(torch.from_numpy(self.answer_tokens).to(self._decoder.device))

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
        del self._fused, self._cache, self._decoder, self._several, self._tower, self._table

    def _steps(self, past: int, token: int, position: int, count: int) -> list[int]:
        """The tokens after the first `past` of the cache and `token`, without regard to stop tokens."""
        if self._fused is None:
            found = []
            for number in range(count):
                places = np.full((3, 1), position + number)
                token = int(self._forward(past + number, self.embed_impl(np.array([token])), places)[0].argmax())
                found.append(token)
            return found
        step = self._fused.step
        with current(self._decoder.device):
            step.token.fill_(token)
            step.positions.fill_(position)
            step.past.fill_(past)
            for _ in range(count):
                step.greedy()
        return [int(one) for one in step.tokens[past : past + count].tolist()]


def _kernels() -> ModuleType:
    """The module of the passes by Triton kernels, imported only where they run."""
    try:
        from edgetune_runtime.backends.triton import fused
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "triton is not installed", hint=install_command("triton", "edgetune-runtime")
        ) from error
    return fused


def _host(tensor: torch.Tensor) -> Float:
    array: Float = tensor.float().cpu().numpy()
    return array
