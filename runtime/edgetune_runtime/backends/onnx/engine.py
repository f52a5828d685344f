"""The ONNX backend: onnxruntime with inputs, outputs and the KV cache bound to memory that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.base import Backend
from edgetune_runtime.backends.onnx.cache import make_cache
from edgetune_runtime.backends.onnx.encoder import VisionEncoder
from edgetune_runtime.backends.onnx.graphs import INT8_ACTIVATIONS, Array, open_graph, require_input
from edgetune_runtime.backends.onnx.heads import ANSWERS, LOGITS, Heads
from edgetune_runtime.backends.onnx.inputs import Inputs
from edgetune_runtime.backends.onnx.mapped import MappedWeights
from edgetune_runtime.backends.values import Arrays, Device, Float, ImageFeatures, Int, ModelShape, Saved
from edgetune_runtime.errors import BundleError, InputError

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

LOAD_STEP_S = 0.02
"""Seconds after which what was read of mapped weights is let go of, again and again while they are loaded."""

PREFILL_CHUNK = 512
"""Tokens of a prompt that a CPU reads at a time, so that the memory it takes does not grow with the prompt."""


PIXELS = "vision_pixels"
"""Role among a bundle's files of the vision encoder that takes pixels as they are."""


class Encoder(Protocol):
    """What encodes pictures."""

    pixels: int | None
    """Values of a row of `pixel_values`, None where rows are no flat patches."""
    raw: bool
    """Whether `pixel_values` are uint8 as in the picture."""

    def __call__(self, images: Arrays) -> ImageFeatures:
        """Encode images, whose arrays have the names of the graph's inputs."""


class OnnxBackend(Backend):
    """Runs graphs on onnxruntime.

    Args:
        vision: path of vision_encoder.onnx.
        pixels: path of the same encoder for uint8 pixels, which shares the other's data file and is run in its place;
            None where a bundle has none.
        embed: path of embed_tokens.onnx.
        decoder: path of decoder_model_merged.onnx.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of each operator; None is onnxruntime's own choice, one a physical core.
        weights: values of those of the decoder's weights that its graph leaves out, by name.
        accuracy_level: of products whose weights the graph dequantizes with standard operators; 0 leaves activations
            alone. Products of onnxruntime's own kind (MatMulNBits) have their level in the graph.

    Raises:
        BundleError: onnxruntime cannot load a graph, or it is none of this kind.
        MissingDependency: onnxruntime is not installed, or on "cuda" its CUDA provider.
    """

    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    def __init__(
        self,
        *,
        vision: Path,
        embed: Path,
        decoder: Path,
        pixels: Path | None = None,
        device: str = "cpu",
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
        accuracy_level: int = INT8_ACTIVATIONS,
    ) -> None:
        place = Device.parse(device)
        self._mapped = [MappedWeights(path) for path in (vision, decoder)]
        with ThreadPoolExecutor(3) as pool:  # onnxruntime prepares a graph's weights outside of Python's lock
            encoder = pool.submit(self.open_encoder, pixels or vision, place, threads, self._mapped[0])
            graphs = (
                pool.submit(open_graph, embed, Device("cpu"), 1),  # a look-up: neither a trip to the GPU nor threads
                pool.submit(open_graph, decoder, place, threads, weights, accuracy_level, mapped=self._mapped[1]),
            )
            loading = True
            while loading:
                loading = bool(wait((encoder, *graphs), timeout=LOAD_STEP_S).not_done)
                for file in self._mapped:
                    file.let_go()
        self._vision, (self._embed, self._decoder) = encoder.result(), (graph.result() for graph in graphs)
        super().__init__(_shape(self._vision, self._decoder, decoder))
        require_input(self._embed, "input_ids", embed)
        self._binding = self._decoder.io_binding()
        self._inputs = Inputs(self._decoder, self._binding)
        self._heads = Heads(self._decoder, self._binding)
        self._cache = make_cache(self._decoder, self._binding, place)
        self.speculates = self._heads.choose and self._cache.cuts
        self.branches = self.speculates and self._inputs.masks
        self._chunk = PREFILL_CHUNK if place.kind == "cpu" else None

    @classmethod
    def load(cls, bundle: Bundle, *, device: str, threads: int | None) -> OnnxBackend:
        """Load an "onnx" bundle.

        Raises:
            InputError: a float32 bundle on CUDA.
            BundleError: onnxruntime cannot load a graph.
            MissingDependency: onnxruntime is not installed, or on "cuda" its CUDA provider.
        """
        return cls(**graphs_of(bundle, device), device=device, threads=threads)

    @staticmethod
    def open_encoder(path: Path, device: Device, threads: int | None, mapped: MappedWeights) -> Encoder:
        """Open vision_encoder.onnx, whose weights are mapped; an engine may encode pictures elsewhere."""
        return VisionEncoder(path, device, threads, mapped)

    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """Run the vision encoder, whose inputs have the arrays' names."""
        return self._vision(images)

    def embed_impl(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        embeddings: Float = self._embed.run(None, {"input_ids": token_ids[None]})[0][0]
        return embeddings

    def reserve_impl(self, length: int) -> None:
        """Make room in the cache."""
        self._cache.reserve(length)

    def forget_impl(self) -> None:
        """Give the cache's memory back; a GPU keeps its own, where taking it again is slow."""
        if self._chunk is not None:
            self._cache.forget()
            self._binding.clear_binding_inputs()
            self._binding.clear_binding_outputs()  # what is bound stays in memory
            self._heads.forget()
            self._inputs.forget()

    def keep_impl(self) -> None:
        """Copy what cannot be cut."""
        self._cache.keep(self.length)

    def rewind_impl(self, length: int) -> bool:
        """Cut the cache."""
        return self._cache.rewind(length)

    def save_impl(self, length: int) -> tuple[Array, ...] | None:
        """Copy the beginning of the cache."""
        return self._cache.save(length)

    def restore_impl(self, saved: Saved) -> None:
        """Write the beginning of the cache."""
        self._cache.restore(saved.length, saved.arrays)

    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens, a chunk at a time, and return the last one's logits."""
        last: Float = self._read(embeddings, positions, deepstack, (len(embeddings) - 1,), LOGITS)[0]
        return last

    def forward_at_impl(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float], at: tuple[int, ...]
    ) -> Float:
        """Append tokens, a chunk at a time, and return the logits after some."""
        if not self._heads.choose:
            return super().forward_at_impl(embeddings, positions, deepstack, at)
        return self._read(embeddings, positions, deepstack, at, LOGITS)

    def answers_at_impl(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float], at: tuple[int, ...]
    ) -> Float:
        """As `forward_at_impl`, with the head's rows of these tokens alone where the graph has them by themselves."""
        if not self._answers_alone:
            return super().answers_at_impl(embeddings, positions, deepstack, at)
        return self._read(embeddings, positions, deepstack, at, ANSWERS)

    def branches_at_impl(
        self,
        embeddings: Float,
        positions: Int,
        sees: npt.NDArray[np.bool_],
        at: tuple[int, ...],
        answers: bool,
    ) -> Float:
        """Append tokens that do not see all before them."""
        bias = np.where(sees, np.float32(0), np.finfo(np.float32).min)
        if answers and self._answers_alone:
            return self._read(embeddings, positions, (), at, ANSWERS, bias)
        logits = self._read(embeddings, positions, (), at, LOGITS, bias)
        return logits[:, self.answer_tokens] if answers else logits

    @property
    def _answers_alone(self) -> bool:
        """Whether the graph has a head of these tokens."""
        return self._heads.answers == len(self.answer_tokens)

    def _read(
        self,
        embeddings: Float,
        positions: Int,
        deepstack: Sequence[Float],
        at: tuple[int, ...],
        head: str,
        bias: Float | None = None,
    ) -> Float:
        """Append tokens, a chunk at a time; the outputs of a head after some of them.

        Scores of attention get a bias [S, T] where there is one.
        """
        count, found = len(embeddings), []
        for start in range(0, count, self._chunk or count):
            chunk = slice(start, start + (self._chunk or count))
            features = [array[chunk] for array in deepstack]
            rows = [row - start for row in at if start <= row < chunk.stop]
            self._heads.want(head, rows)
            part = None if bias is None else bias[chunk, : self.length + min(chunk.stop, count)]
            self._inputs.bind(self.length + start, embeddings[chunk], positions[:, chunk], features, part)
            self._cache.before()
            self._decoder.run_with_iobinding(self._binding)
            self._cache.after()
            found.append(self._heads.given(head, len(rows)))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def close_impl(self) -> None:
        """Drop the graphs and the buffers bound to them."""
        del (
            self._cache,
            self._heads,
            self._inputs,
            self._binding,
            self._vision,
            self._embed,
            self._decoder,
            self._mapped,
        )


def graphs_of(bundle: Bundle, device: str) -> dict[str, Any]:
    """What `OnnxBackend` is made of in a bundle with graphs.

    Raises:
        InputError: a float32 bundle on CUDA.
    """
    if Device.parse(device).kind == "cuda" and not bundle.half:
        # CUDA's GroupQueryAttention is float16 only. In float32 onnxruntime moves it to the CPU, where the cache is no
        # longer one buffer: on an H200 every answer was right for one token and wrong from then on.
        raise InputError(
            f"{bundle.folder}: computes in float32, but attention on CUDA needs float16",
            hint="export with --target cuda",
        )
    level = INT8_ACTIVATIONS if bundle.accuracy_level is None else bundle.accuracy_level
    graphs = {role: bundle.files[role] for role in ("vision", "embed", "decoder")}
    return {**graphs, "pixels": bundle.files.get(PIXELS), "accuracy_level": level}


def _shape(encoder: Encoder, decoder: Any, path: Path) -> ModelShape:
    """What the graphs say of the model; the first past key tells of the cache."""
    caches = [node.name for node in decoder.get_inputs() if node.name.startswith("past_key_values.")]
    # Layers of linear attention have a state in place of keys and values.
    first = next((name for name in caches if name.endswith(".key")), "past_key_values.0.key")
    embeds, past = (require_input(decoder, name, path) for name in ("inputs_embeds", first))
    logits = {node.name: node for node in decoder.get_outputs()}.get("logits")
    sizes = [embeds.shape[-1], logits.shape[-1] if logits else None, past.shape[1], past.shape[3]]
    if not all(isinstance(size, int) for size in sizes):
        raise BundleError(f"{path}: the graph leaves sizes of the model open", hint="export the bundle again")
    hidden, vocabulary, kv_heads, head_dim = sizes
    names = [node.name for node in decoder.get_inputs()]
    return ModelShape(
        hidden=hidden,
        vocabulary=vocabulary,
        deepstack=sum(name.startswith("deepstack_embeds.") for name in names),
        layers=len({name.split(".")[1] for name in caches}),
        kv_heads=kv_heads,
        head_dim=head_dim,
        pixels=encoder.pixels,
        raw_pixels=encoder.raw,
    )
