"""Images on their way into the model: preprocessed pixels, or the features of a frozen vision tower, kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from edgetune_runtime import image

ImageInputs = Callable[[Sequence[Path]], dict[str, Any]]
"""Takes the paths of a batch's images and returns the image part of the model's keyword arguments."""


class PixelInputs:
    """Preprocessed images, kept while they fit into a budget.

    Args:
        spec: the checkpoint's preprocessing.
        budget_bytes: memory for kept images.
    """

    def __init__(self, spec: image.ImageSpec, budget_bytes: int = 0) -> None:
        self._spec = spec
        self._room = budget_bytes
        self._kept: dict[Path, image.Pixels] = {}

    def __call__(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Return pixel_values float32 [patches, C·T·P·P] and image_grid_thw int64 [images, 3].

        Raises:
            ImageError: an image cannot be read.
        """
        pixels = [self._pixels(path) for path in paths]
        return {
            "pixel_values": torch.cat([torch.from_numpy(item.pixel_values) for item in pixels]),
            "image_grid_thw": torch.cat([torch.from_numpy(item.grid_thw) for item in pixels]),
        }

    def _pixels(self, path: Path) -> image.Pixels:
        if path in self._kept:
            return self._kept[path]
        pixels = image.preprocess(image.load_image(path), self._spec)
        if pixels.pixel_values.nbytes <= self._room:
            self._room -= pixels.pixel_values.nbytes
            self._kept[path] = pixels
        return pixels


@dataclass(frozen=True)
class _Features:
    """What the tower makes of one image: grid [1, 3], features [tokens, H], and those of each DeepStack level."""

    grid: torch.Tensor
    pooled: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.pooled, *self.deepstack))


class FeatureInputs:
    """The image features of a frozen vision tower, computed once per image while they fit into a budget.

    Valid only while nothing that the tower computes with is trained.

    Args:
        model: a transformers model with `get_image_features`, which takes them back as `mm_encoder_outputs`.
        spec: the checkpoint's preprocessing.
        budget_bytes: memory for kept features, in the model's dtype on the CPU.
    """

    def __init__(self, model: Any, spec: image.ImageSpec, budget_bytes: int) -> None:
        self._model = model
        self._pixels = PixelInputs(spec)
        self._room = budget_bytes
        self._kept: dict[Path, _Features] = {}
        self._output_class: type[ModelOutput] | None = None  # known after the first image

    def __call__(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Return mm_encoder_outputs (what `get_image_features` returns) and image_grid_thw int64 [images, 3].

        Raises:
            ImageError: an image cannot be read.
        """
        known = {path: self._kept[path] for path in paths if path in self._kept}
        missing = list(dict.fromkeys(path for path in paths if path not in known))
        if missing:
            for path, features in zip(missing, self._compute(missing), strict=True):
                known[path] = features
                if features.nbytes <= self._room:
                    self._room -= features.nbytes
                    self._kept[path] = features
        chosen = [known[path] for path in paths]
        fields: dict[str, Any] = {"pooler_output": [item.pooled for item in chosen]}
        if chosen[0].deepstack:
            fields["deepstack_features"] = [list(level) for level in zip(*(f.deepstack for f in chosen), strict=True)]
        assert self._output_class is not None
        return {
            "mm_encoder_outputs": {"image": self._output_class(**fields)},
            "image_grid_thw": torch.cat([item.grid for item in chosen]),
        }

    @torch.no_grad()
    def _compute(self, paths: Sequence[Path]) -> list[_Features]:
        inputs = self._pixels(paths)
        device = self._model.device
        grids = inputs["image_grid_thw"]
        outputs = self._model.get_image_features(inputs["pixel_values"].to(device), grids.to(device), return_dict=True)
        self._output_class = type(outputs)
        levels = getattr(outputs, "deepstack_features", None) or []
        # Clones: a part is a view, and keeping one would keep the whole batch in memory.
        return [
            _Features(
                grids[i : i + 1].clone(),
                outputs.pooler_output[i].cpu().clone(),
                tuple(level[i].cpu().clone() for level in levels),
            )
            for i in range(len(paths))
        ]
