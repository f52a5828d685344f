"""The TensorRT backend: engines with static buffers, one launch a decoded token, no torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends import Float, ImageFeatures, Int
from edgetune_runtime.backends.trt.context import Context, Engine
from edgetune_runtime.backends.trt.cuda import Cuda, Device
from edgetune_runtime.backends.trt.engines import choose, graphs_of
from edgetune_runtime.backends.trt.library import installed, load_library
from edgetune_runtime.errors import BundleError, EdgetuneError, InputError

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

DECODE, PREFILL = 0, 1
"""Optimization profiles of the decoder: one token, and up to a whole prompt."""


def load(bundle: Bundle, *, device: str = "cuda", threads: int | None = None) -> TrtBackend:
    """Load the engines that were built for this machine.

    Raises:
        InputError: a device other than the GPU, or a number of threads, was asked for.
        BundleError: there are no engines for this GPU and TensorRT, or they were changed.
        MissingDependency: TensorRT is not installed, or there is no GPU.
    """
    if device != "cuda":
        raise InputError(f"{bundle.folder}: TensorRT engines run on a GPU, not on {device}", hint="choose device cuda")
    if threads is not None:
        raise InputError("threads are for CPUs; TensorRT engines run on a GPU", hint="leave the number of threads out")
    load_library()  # says what to install
    gpu = Cuda()
    engines, library = choose(bundle.folder, list(installed()), gpu.capability)
    paths = {name: engines.path(name, graph.source) for name, graph in graphs_of(bundle).items()}
    table = np.load(bundle.files["embed"], mmap_mode="r")
    return TrtBackend(
        decoder=Engine.load(library, paths["decoder"]),
        vision=Engine.load(library, paths["vision"]),
        embeddings=table,
        device=gpu,
        in_place=bool(bundle.manifest["result"]["bundle"]["trt"]["in_place"]),
    )


class TrtBackend:
    """Implements `edgetune_runtime.backends.Backend` on TensorRT.

    Args:
        decoder: engine with the profiles DECODE and PREFILL.
        vision: engine that encodes one frame of one image.
        embeddings: float16 [V, H], of which only the rows that are looked up are read.
        device: runs the engines.
        in_place: whether the decoder's past and present are one buffer; otherwise they take turns in two.
    """

    def __init__(
        self, *, decoder: Engine, vision: Engine, embeddings: npt.NDArray[np.float16], device: Device, in_place: bool
    ) -> None:
        self._device = device
        self._embeddings = embeddings
        self._vision = Context(vision, 0, device, {})
        self._caches = [name for name in decoder.inputs if name.startswith("past_key_values.")]
        self._deepstack = sorted(name for name in decoder.inputs if name.startswith("deepstack_embeds."))
        self._sides: list[dict[str, int]] = [self._allocate_cache(decoder) for _ in range(1 if in_place else 2)]
        logits = device.allocate(decoder.bytes_of("logits", decoder.shapes["logits"]))
        shared = {"logits": logits, **self._bindings(0)}
        self._decode = Context(decoder, DECODE, device, shared)
        self._prefill = Context(decoder, PREFILL, device, shared)
        self._chunk = self._prefill.largest["cache_position"][0]
        # Every layer's cache has one row a token; which axis that is depends on the vocabulary of the graph.
        self._capacity = decoder.shapes[self._caches[0]][2 if in_place else 0]
        self._turn = 0
        self._length = 0
        self._steps = 0
        self._features_in: set[Context] = set()  # contexts whose DeepStack inputs are not zero
        self._graphs: dict[int, Callable[[], None]] = {}
        self._capturing = True

    def encode_images(self, pixel_values: Float, grids: Int) -> ImageFeatures:
        """Run the vision encoder frame by frame: frames do not see each other, and need no mask that way."""
        parts: list[list[Float]] = []
        start = 0
        for frames, rows, columns in grids.tolist():
            for _ in range(frames):
                end = start + rows * columns
                self._vision.upload("pixel_values", pixel_values[start:end])
                self._vision.upload("image_grid_thw", np.array([[1, rows, columns]], np.int64))
                self._vision.execute()
                parts.append([self._vision.download(name).astype(np.float32) for name in self._vision.engine.outputs])
                start = end
        named = dict(zip(self._vision.engine.outputs, zip(*parts, strict=True), strict=True))
        features = {name: np.concatenate(arrays) for name, arrays in named.items()}
        first = features.pop("image_features")
        return ImageFeatures(first, tuple(features[name] for name in sorted(features)))

    def embed(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        return self._embeddings[token_ids].astype(np.float32)

    def reserve(self, length: int) -> None:
        """Start anew. Old rows of the cache need no clearing: no token sees a row after its own."""
        if length > self._capacity:
            raise InputError(
                f"{length} tokens, but the engine's cache has {self._capacity}",
                hint="export with a larger --max-length",
            )
        self._length = 0

    def forward(self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = ()) -> Float:
        """Append tokens, in pieces of what the prefill profile takes, and return the last one's logits."""
        if self._length + len(embeddings) > self._capacity:
            raise InputError(f"{self._length + len(embeddings)} tokens in a cache of {self._capacity}")
        for start in range(0, len(embeddings), self._chunk):
            piece = slice(start, start + self._chunk)
            self._append(embeddings[piece], positions[:, piece], [features[piece] for features in deepstack])
        logits: Float = self._decode.download("logits")[0, 0]
        return logits

    def _append(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> None:
        count = len(embeddings)
        context = self._decode if count == 1 else self._prefill
        context.upload("inputs_embeds", embeddings[None])
        context.upload("position_ids", positions[:, None])
        context.upload("cache_position", np.arange(self._length, self._length + count))
        for number, name in enumerate(self._deepstack):
            if deepstack:
                context.upload(name, deepstack[number][None])
            elif context in self._features_in or context is self._prefill:
                context.zero(name, (1, *embeddings.shape))
        (self._features_in.add if deepstack else self._features_in.discard)(context)
        if context is self._decode:
            self._step()
        else:
            self._bind_cache(context)
            context.execute()
        self._turn = (self._turn + 1) % len(self._sides)
        self._length += count

    def _step(self) -> None:
        """Decode a token: the first one plainly, so that TensorRT sets itself up; later ones as a recorded graph."""
        self._steps += 1
        if self._turn not in self._graphs:
            self._bind_cache(self._decode)
            if self._steps == 1 or not self._capturing:
                self._decode.execute()
                return
            try:
                self._graphs[self._turn] = self._device.record(self._decode.execute)
            except EdgetuneError as error:
                warnings.warn(f"decoding without CUDA graphs, which is slower: {error}", stacklevel=2)
                self._capturing = False
                self._decode.execute()
                return
        self._graphs[self._turn]()

    def _bind_cache(self, context: Context) -> None:
        for name, address in self._bindings(self._turn).items():
            context.bind(name, address)

    def _bindings(self, turn: int) -> dict[str, int]:
        """Addresses of past and present in this turn."""
        past, present = self._sides[turn], self._sides[(turn + 1) % len(self._sides)]
        return past | {name.replace("past_key_values", "present"): address for name, address in present.items()}

    def _allocate_cache(self, decoder: Engine) -> dict[str, int]:
        shapes = {name: decoder.shapes[name] for name in self._caches}
        if any(-1 in shape for shape in shapes.values()):
            raise BundleError("the decoder engine's cache has a free dimension: it is not from this bundle")
        return {name: self._device.allocate(decoder.bytes_of(name, shape)) for name, shape in shapes.items()}
