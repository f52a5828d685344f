"""Reading a checkpoint's own preprocessing settings; the class defaults of transformers are never used for them.

Between transformers 4 and 5, and from one processor class to the next, the same default differs: a limit that a
checkpoint does not state is an error here and not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json

_FILES = ("preprocessor_config.json", "processor_config.json")
_STEPS = ("do_resize", "do_rescale", "do_normalize")
_HINT = "copy the file of the published checkpoint"
_RESCALE = 1 / 255
"""What transformers assumes when a config leaves the factor out; published configs often do."""


def read_preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of the image processor's config.

    transformers 5 may save it inside `processor_config.json`, where it is used first when both exist.

    Raises:
        InputError: there is none, or it is broken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder")
    for name in reversed(_FILES):
        path = folder / name
        if not path.is_file():
            continue
        config: Any = read_json(path)
        if name == "processor_config.json":
            config = config.get("image_processor")
            if config is None:
                continue
        if not isinstance(config, dict):
            raise InputError(f"{path}: must hold a JSON object")
        return path, config
    raise InputError(
        f"{folder}: the checkpoint has no preprocessor_config.json, so its image limits are unknown",
        hint="copy preprocessor_config.json from the model it was made from",
    )


@dataclass(frozen=True)
class Settings:
    """A checkpoint's preprocessor config and model config, with complaints that name the file.

    Attributes:
        path: of the preprocessor config.
        config: its content.
        model_path: of config.json.
        model: its content.
        processor: content of processor_config.json, empty where there is none.
    """

    path: Path
    config: Mapping[str, Any]
    model_path: Path
    model: Mapping[str, Any]
    processor: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, kinds: tuple[str, ...], steps: tuple[str, ...] = _STEPS) -> Settings:
        """Read a checkpoint whose image processor is one of `kinds` (with or without "Fast" or "Pil" at its end).

        Args:
            folder: the checkpoint.
            kinds: names of its image processor.
            steps: switches of the preprocessor config that must not be off.

        Raises:
            InputError: a file is missing or broken, the processor is another one, or a step of it is switched off.
        """
        path, config = read_preprocessor(folder)
        kind = str(config.get("image_processor_type") or "")
        if kind and kind.removesuffix("Fast").removesuffix("Pil") not in kinds:
            raise InputError(f"{path}: image_processor_type {kind!r} is not {' or '.join(kinds)}")
        for switch in steps:
            if config.get(switch, True) is not True:
                raise InputError(f"{path}: {switch} is {config[switch]!r}; only true is supported")
        processor = folder / "processor_config.json"
        model_path = folder / "config.json"
        more = read_json(processor) if processor.is_file() else {}
        return cls(path, config, model_path, read_json(model_path), more)

    def need(self, *keys: str) -> Any:
        """Return a value of the preprocessor config by its path of keys.

        Raises:
            InputError: it is missing.
        """
        return _dig(self.config, keys, self.path)

    def need_model(self, *keys: str) -> Any:
        """Return a value of config.json by its path of keys.

        Raises:
            InputError: it is missing.
        """
        return _dig(self.model, keys, self.model_path)

    def whole(self, *keys: str) -> int:
        """Return a positive whole number of the preprocessor config.

        Raises:
            InputError: it is missing or something else.
        """
        value = self.need(*keys)
        if type(value) is not int or value < 1:
            raise InputError(f"{self.path}: {'.'.join(keys)} must be a positive whole number, got {value!r}")
        return value

    def side(self) -> int:
        """Return the side of the square input, in pixels: `size` as height and width, or as shortest_edge.

        Raises:
            InputError: it is missing, not a square, or not what the vision tower takes.
        """
        size = self.need("size")
        if not isinstance(size, dict):
            raise InputError(f"{self.path}: 'size' must be an object, got {size!r}")
        if "shortest_edge" in size:
            side = self.whole("size", "shortest_edge")
        else:
            side = self.whole("size", "height")
            if side != self.whole("size", "width"):
                raise InputError(f"{self.path}: size {size!r} is not a square")
        self.check_tower(side)
        return side

    def check_tower(self, side: int) -> None:
        """Refuse an input side (pixels) that the vision tower was not built for.

        Raises:
            InputError: config.json says another image_size, or none.
        """
        built_for = _one(self.need_model("vision_config", "image_size"))
        if built_for != side:
            raise InputError(
                f"{self.path}: pictures of {side} pixels, but the vision tower takes {built_for} ({self.model_path})",
                hint=_HINT,
            )

    def patch(self) -> int:
        """Return the side of a vision patch, in pixels."""
        return int(_one(self.need_model("vision_config", "patch_size")))

    def check_tokens(self, key: str, tokens: int) -> None:
        """Refuse a processor_config.json that counts other image tokens than the model makes.

        Raises:
            InputError: it does.
        """
        said = self.processor.get(key)
        if said is not None and said != tokens:
            raise InputError(
                f"{self.path.parent / 'processor_config.json'}: {key} is {said}, but the model makes {tokens} image "
                "tokens of a tile",
                hint=_HINT,
            )

    def normalise(self) -> Normalise:
        """Return how 8-bit values become the model's.

        Raises:
            InputError: mean or std are missing, or not three numbers.
        """
        mean, std = self.need("image_mean"), self.need("image_std")
        rescale = self.config.get("rescale_factor", _RESCALE)
        for channels in (mean, std):
            if not isinstance(channels, list) or len(channels) != 3 or not all(map(_is_number, channels)):
                raise InputError(f"{self.path}: image_mean and image_std must be three numbers, got {channels!r}")
        if not _is_number(rescale):
            raise InputError(f"{self.path}: rescale_factor must be a number, got {rescale!r}")
        try:
            return Normalise(tuple(mean), tuple(std), rescale)
        except InputError as error:
            raise InputError(f"{self.path}: image_{error}") from error

    def resample(self) -> Image.Resampling:
        """Return Pillow's resampling filter.

        Raises:
            InputError: it is missing or unknown.
        """
        value = self.need("resample")
        try:
            return Image.Resampling(value)
        except ValueError as error:
            raise InputError(f"{self.path}: resample {value!r} is no filter of Pillow") from error


@dataclass(frozen=True)
class Normalise:
    """Rescaling and normalisation, in transformers' order and precision.

    Attributes:
        mean: per RGB channel, subtracted after rescaling.
        std: per RGB channel, divided by after that.
        rescale: factor on 8-bit values.

    Raises:
        InputError: a value is no number, or none that a model can have been trained with.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float

    def __post_init__(self) -> None:
        channels: list[tuple[str, tuple[float, ...], float, float]]
        channels = [("mean", self.mean, -256, 256), ("std", self.std, 1e-3, 256)]
        for name, values, low, high in channels:
            if len(values) != 3 or not all(_is_number(value) and low <= value <= high for value in values):
                raise InputError(f"{name} must be three numbers from {low:g} to {high:g}, got {list(values)}")
        if not (_is_number(self.rescale) and 1e-3 <= self.rescale <= 1):
            raise InputError(f"rescale must be a number from 0.001 to 1, got {self.rescale!r}")

    def table(self) -> npt.NDArray[np.float32]:
        """Return what each 8-bit value becomes, float32 [3, 256]: only 256 exist, so each is computed once."""
        levels = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        mean, std = np.array(self.mean, np.float32)[:, None], np.array(self.std, np.float32)[:, None]
        return cast("npt.NDArray[np.float32]", (levels - mean) / std)

    def fused_table(self) -> npt.NDArray[np.float32]:
        """Return `table` with the rounding of transformers' torchvision processors, float32 [3, 256].

        They scale mean and std to 8-bit values once, and do not rescale the pixels; the last bit may differ.
        """
        scale = np.float32(1 / self.rescale)
        mean, std = (np.array(values, np.float32)[:, None] * scale for values in (self.mean, self.std))
        return cast("npt.NDArray[np.float32]", (np.arange(256, dtype=np.float32) - mean) / std)

    def __call__(self, images: list[Image.Image], *, raw: bool = False) -> npt.NDArray[np.float32 | np.uint8]:
        """Return images of one size as float32 [N, 3, H, W], or as uint8 what they are (`raw`)."""
        rgb = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)  # [N, 3, H, W] uint8
        return np.ascontiguousarray(rgb if raw else self.table()[np.arange(3)[:, None, None], rgb])

    @property
    def background(self) -> tuple[int, int, int]:
        """The mean colour as 8-bit RGB, cut to whole numbers: what pictures are padded with."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


def _dig(values: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> Any:
    value: Any = values
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise InputError(f"{path}: missing {'.'.join(keys)}", hint=_HINT)
    return value


def _one(value: Any) -> Any:
    """Return a number that may be written as a pair of equal ones."""
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
