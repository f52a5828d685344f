"""Images on their way into the model: preprocessed pixels, or the features of a frozen vision tower, kept in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from weakref import WeakValueDictionary, ref

import torch
import transformers
from transformers.utils.generic import ModelOutput

from edgetune_runtime.errors import MissingDependency
from edgetune_runtime.images.base import Arrays, Preprocessing
from edgetune_runtime.images.load import load_image
from edgetune_runtime.threads import usable_cores


class ImageInputs(Protocol):
    """Gives the model a batch's images."""

    def __call__(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Return the image part of the model's keyword arguments.

        Raises:
            ImageError: an image cannot be read.
        """

    def begin(self, paths: Sequence[Path], threads: Executor) -> object:
        """Have threads prepare a later call with these images; what they made is forgotten with what this returns."""


PIXELS = "pixel_values"
THREADS = min(16, usable_cores())
"""How many decode and resize at a time; both release Python's lock."""


@dataclass(frozen=True)
class _Picture:
    """One preprocessed image: the model's arrays, and how many tokens they become."""

    arrays: Arrays
    tokens: int

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class PixelInputs:
    """Preprocessed images, kept while they fit into a budget.

    Args:
        spec: the checkpoint's preprocessing.
        budget_bytes: memory for kept images.
    """

    def __init__(self, spec: Preprocessing, budget_bytes: int = 0) -> None:
        self._spec = spec
        self._room = budget_bytes
        self._kept: dict[Path, _Picture] = {}
        self._coming: WeakValueDictionary[Path, Future[_Picture]] = WeakValueDictionary()

    def begin(self, paths: Sequence[Path], threads: Executor) -> list[Future[_Picture]]:
        """Have threads decode images that a later call asks for; they are forgotten with what this returns."""
        begun = []
        for path in dict.fromkeys(paths):
            if path not in self._kept:
                future = self._coming.get(path) or threads.submit(self._picture, path)
                self._coming[path] = future
                begun.append(future)
        return begun

    def __call__(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Return what the preprocessing gives the model: pixel_values float32, and what belongs to them.

        Raises:
            ImageError: an image cannot be read.
        """
        return self.join(self.pictures(paths))

    def pictures(self, paths: Sequence[Path]) -> list[_Picture]:
        """Return preprocessed images; those that are neither kept nor begun are made by several threads.

        Raises:
            ImageError: one cannot be read.
        """
        missing = [path for path in dict.fromkeys(paths) if path not in self._kept]
        with ThreadPoolExecutor(max(1, min(len(missing), THREADS))) as threads:
            made = {path: future.result() for path, future in zip(missing, self.begin(missing, threads), strict=True)}
        found = [made[path] if path in made else self._kept[path] for path in paths]
        for path, picture in made.items():
            if picture.nbytes <= self._room:
                self._room -= picture.nbytes
                self._kept[path] = picture
        return found

    def _picture(self, path: Path) -> _Picture:
        image = load_image(path)
        return _Picture(self._spec.arrays(image), self._spec.plan(*image.size).image_tokens)

    def join(self, pictures: Sequence[_Picture]) -> dict[str, Any]:
        """Return images as the model takes them together."""
        joined = self._spec.join([picture.arrays for picture in pictures])
        return {name: torch.from_numpy(array) for name, array in joined.items()}


@dataclass(frozen=True)
class _Features:
    """What the tower makes of one image.

    Attributes:
        arrays: what the model takes beside pixels, such as image_grid_thw.
        pooled: features [tokens, H].
        deepstack: those of each DeepStack level.
    """

    arrays: Arrays
    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.pooled, *self.deepstack))

    def record_stream(self, stream: Any) -> None:
        for tensor in (self.pooled, *self.deepstack):
            tensor.record_stream(stream)

    def to(self, device: torch.device | str, *, copy: bool = False) -> _Features:
        levels = tuple(level.to(device, copy=copy) for level in self.deepstack)
        return _Features(self.arrays, self.pooled.to(device, copy=copy), levels)


class FeatureInputs:
    """The image features of a frozen vision tower, computed once per image while they fit into a budget.

    Valid only while nothing that the tower computes with is trained. On a GPU a batch that was begun gets its features
    in a thread, on a stream of its own, so that neither the tower nor copies of what is kept delay a training step.

    Args:
        model: a transformers model with `get_image_features`, which takes them back as `mm_encoder_outputs`.
        spec: the checkpoint's preprocessing.
        budget_bytes: memory for kept features, in the model's dtype on the CPU.
        ahead: compute features of batches that were begun; None does so on GPUs alone, for on a CPU they would take the
            cores from the training.

    Raises:
        MissingDependency: the model does not take features, and would ignore them as any argument that it does not
            know: transformers before 5.18.
    """

    def __init__(self, model: Any, spec: Preprocessing, budget_bytes: int, *, ahead: bool | None = None) -> None:
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            raise MissingDependency(
                f"transformers {transformers.__version__}: its {type(model).__name__} takes no image features",
                hint="pip install 'transformers>=5.18'",
            )
        self._model = model
        self._spec = spec
        self._pixels = PixelInputs(spec)
        self._room = budget_bytes
        self._kept: dict[Path, _Features] = {}
        self._form: Callable[[list[torch.Tensor]], Any] = list
        self._output_class: type[ModelOutput] | None = None  # known after the first image
        self._ahead = ahead
        self._stream: torch.cuda.Stream | None = None
        self._coming: WeakValueDictionary[tuple[Path, ...], Future[dict[Path, _Features]]] = WeakValueDictionary()
        self._last: Callable[[], Future[Any] | None] = lambda: None  # what was begun last, while somebody holds it
        self._one_at_a_time = Lock()

    def begin(self, paths: Sequence[Path], threads: Executor) -> object:
        """As `PixelInputs.begin`, for images whose features are not kept; on a GPU these are computed as well.

        A thread waits only for what was begun before, so that any number of them will do.
        """
        begun = self._pixels.begin([path for path in paths if path not in self._kept], threads)
        if not paths or not (self._on_gpu if self._ahead is None else self._ahead):
            return begun
        future = self._coming.get(tuple(paths)) or threads.submit(self._prepare, paths, begun, [self._last()])
        self._coming[tuple(paths)], self._last = future, ref(future)
        return future

    def __call__(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Return mm_encoder_outputs (what `get_image_features` returns), and what the model takes beside pixels.

        Raises:
            ImageError: an image cannot be read.
        """
        begun = self._coming.get(tuple(paths))
        known = self._features(paths) if begun is None else begun.result()
        if self._stream is not None:  # or their memory could be used again while the training reads them
            for features in known.values():
                features.record_stream(torch.cuda.current_stream(self._model.device))
        chosen = [known[path] for path in paths]
        fields: dict[str, Any] = {"pooler_output": self._form([item.pooled for item in chosen])}
        if chosen[0].deepstack:
            fields["deepstack_features"] = [list(level) for level in zip(*(f.deepstack for f in chosen), strict=True)]
        assert self._output_class is not None
        beside = self._spec.join([item.arrays for item in chosen])
        return {
            "mm_encoder_outputs": {"image": self._output_class(**fields)},
            **{name: torch.from_numpy(array) for name, array in beside.items()},
        }

    @property
    def _on_gpu(self) -> bool:
        return bool(self._model.device.type == "cuda")

    def _prepare(self, paths: Sequence[Path], _: object, last: list[Future[Any] | None]) -> dict[Path, _Features]:
        """Return images' features after those of the batch before, so that the tower sees the same groups of them.

        The pictures are held until they were used; the batch before only until it is there.
        """
        before = last.pop()
        if before is not None:
            with suppress(Exception):  # which is told where its own batch is asked for
                before.result()
            del before
        return self._features(paths)

    def _features(self, paths: Sequence[Path]) -> dict[Path, _Features]:
        """Return images' features on the model's device, and keep those that are new."""
        device = self._model.device
        if self._stream is None and self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the model may be on its way there
        apart: AbstractContextManager[Any] = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with self._one_at_a_time, apart:
            known = {path: self._kept[path].to(device) for path in paths if path in self._kept}
            missing = list(dict.fromkeys(path for path in paths if path not in known))
            for path, features in zip(missing, self._compute(missing) if missing else [], strict=True):
                known[path] = features
                if features.nbytes <= self._room:
                    self._room -= features.nbytes
                    self._kept[path] = features.to("cpu", copy=True)  # of a part of what the tower gave for many images
            if self._stream is not None:
                self._stream.synchronize()
        return known

    @torch.no_grad()
    def _compute(self, paths: Sequence[Path]) -> list[_Features]:
        pictures = self._pixels.pictures(paths)
        inputs = {name: tensor.to(self._model.device) for name, tensor in self._pixels.join(pictures).items()}
        outputs = self._model.get_image_features(**inputs, return_dict=True)
        self._output_class = type(outputs)
        # Some models take the features back as one tensor, the others as a list that they concatenate themselves.
        self._form = torch.cat if isinstance(outputs.pooler_output, torch.Tensor) else list
        counts = [picture.tokens for picture in pictures]
        pooled = _by_image(outputs.pooler_output, counts)
        levels = [_by_image(level, counts) for level in getattr(outputs, "deepstack_features", None) or []]
        return [
            _Features(_beside(picture.arrays), pooled[i], tuple(level[i] for level in levels))
            for i, picture in enumerate(pictures)
        ]


def _by_image(features: torch.Tensor | Sequence[torch.Tensor], counts: Sequence[int]) -> list[torch.Tensor]:
    """Return each image's features [tokens, H], however the model has grouped them, as views of the whole batch's."""
    parts = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
    return list(parts.flatten(end_dim=-2).split(list(counts)))


def _beside(arrays: Mapping[str, Any]) -> Arrays:
    return {name: array for name, array in arrays.items() if name != PIXELS}
