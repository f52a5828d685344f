"""The TensorRT backend: engines with static buffers, one launch a decoded token, no torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.base import Backend
from edgetune_runtime.backends.trt.context import Context, Engine
from edgetune_runtime.backends.trt.cuda import Cuda
from edgetune_runtime.backends.trt.cuda import Device as Memory
from edgetune_runtime.backends.trt.engines import choose, graphs_of
from edgetune_runtime.backends.trt.frames import encoder_calls
from edgetune_runtime.backends.trt.library import installed, load_library
from edgetune_runtime.backends.values import Arrays, Device, Float, ImageFeatures, Int, ModelShape
from edgetune_runtime.errors import BundleError, EdgetuneError, InputError

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

DECODE, PREFILL = 0, 1
"""Optimization profiles of the decoder: one token, and up to a whole prompt."""


class TrtBackend(Backend):
    """Runs engines on TensorRT.

    Args:
        decoder: engine with the profiles DECODE and PREFILL.
        vision: engine that encodes one frame of one image.
        embeddings: float16 [V, H], of which only the rows that are looked up are read.
        device: runs the engines.
        in_place: whether the decoder's past and present are one buffer; otherwise they take turns in two.
    """

    formats = ("trt",)

    def __init__(
        self, *, decoder: Engine, vision: Engine, embeddings: npt.NDArray[np.float16], device: Memory, in_place: bool
    ) -> None:
        super().__init__(_shape(decoder, vision))
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
        self._rows = decoder.shapes[self._caches[0]][2 if in_place else 0]
        self._turn = 0
        self._steps = 0
        self._features_in: set[Context] = set()  # contexts whose DeepStack inputs are not zero
        self._graphs: dict[int, Callable[[], None]] = {}
        self._capturing = True

    @classmethod
    def load(cls, bundle: Bundle, *, device: str, threads: int | None) -> TrtBackend:
        """Load the engines that were built for this machine.

        Raises:
            InputError: a device other than the GPU, or a number of threads, was asked for.
            BundleError: there are no engines for this GPU and TensorRT, or they were changed.
            MissingDependency: TensorRT is not installed, or there is no such GPU.
        """
        place = Device.parse(device)
        if place.kind != "cuda":
            raise InputError(
                f"{bundle.folder}: TensorRT engines run on a GPU, not on {device}", hint="choose device cuda"
            )
        if threads is not None:
            raise InputError(
                "threads are for CPUs; TensorRT engines run on a GPU", hint="leave the number of threads out"
            )
        load_library()  # says what to install
        gpu = Cuda(place.number)
        engines, library = choose(bundle.folder, list(installed()), gpu.capability)
        paths = {name: engines.path(name, graph.source) for name, graph in graphs_of(bundle).items()}
        return cls(
            decoder=Engine.load(library, paths["decoder"]),
            vision=Engine.load(library, paths["vision"]),
            embeddings=np.load(bundle.files["embed"], mmap_mode="r"),
            device=gpu,
            in_place=bool(bundle.manifest["result"]["bundle"]["trt"]["in_place"]),
        )

    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """Run the vision encoder."""
        parts = [self._encode(call) for call in encoder_calls(images)]
        named = dict(zip(self._vision.engine.outputs, zip(*parts, strict=True), strict=True))
        features = {name: np.concatenate(arrays) for name, arrays in named.items()}
        first = features.pop("image_features")
        return ImageFeatures(first, tuple(features[name] for name in sorted(features)))

    def _encode(self, inputs: Arrays) -> list[Float]:
        """The encoder's outputs for one call's inputs."""
        for name, array in inputs.items():
            self._vision.upload(name, array)
        self._vision.execute()
        return [self._vision.download(name).astype(np.float32) for name in self._vision.engine.outputs]

    def embed_impl(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        return self._embeddings[token_ids].astype(np.float32)

    def reserve_impl(self, length: int) -> None:
        """Start anew. Old rows of the cache need no clearing: no token sees a row after its own."""
        if length > self._rows:
            raise InputError(
                f"{length} tokens, but the engine's cache has {self._rows}",
                hint="export with a larger --max-length",
            )

    def rewind_impl(self, length: int) -> bool:
        """No token sees a row after its own."""
        return True

    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens, in pieces of what the prefill profile takes, and return the last one's logits."""
        for start in range(0, len(embeddings), self._chunk):
            piece = slice(start, start + self._chunk)
            past = self.length + start
            self._append(past, embeddings[piece], positions[:, piece], [features[piece] for features in deepstack])
        logits: Float = self._decode.download("logits")[0, 0]
        return logits

    def close_impl(self) -> None:
        """Give the GPU's memory back."""
        self._graphs.clear()
        if isinstance(self._device, Cuda):
            self._device.close()

    def _append(self, past: int, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> None:
        count = len(embeddings)
        context = self._decode if count == 1 else self._prefill
        context.upload("inputs_embeds", embeddings[None])
        context.upload("position_ids", positions[:, None])
        context.upload("cache_position", np.arange(past, past + count))
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


def _shape(decoder: Engine, vision: Engine) -> ModelShape:
    """What the engines say of the model."""
    caches = [name for name in decoder.inputs if name.startswith("past_key_values.") and name.endswith(".key")]
    if not caches:
        raise BundleError("the decoder engine has no cache: it is not from this bundle")
    cache = decoder.shapes[caches[0]]
    return ModelShape(
        hidden=decoder.shapes["inputs_embeds"][-1],
        vocabulary=decoder.shapes["logits"][-1],
        deepstack=sum(name.startswith("deepstack_embeds.") for name in decoder.inputs),
        layers=len(caches),
        kv_heads=cache[1],
        head_dim=cache[-1],
        pixels=vision.shapes["pixel_values"][1] if len(vision.shapes["pixel_values"]) == 2 else None,
    )
