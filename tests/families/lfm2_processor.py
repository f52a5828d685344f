"""transformers' image processor of LFM2-VL on a stand-in for torchvision.

No torchvision fits beside the torch of these tests. The processor takes three things of it: the names of filters,
`normalize`, and `resize`, which for 8-bit pictures is torch's own `interpolate`; all else is the processor's own code.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import image_processing_backends
from transformers.utils.import_utils import is_torchvision_available


class _Filter(enum.Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def resize_by_torch(image: Any, size: Any, interpolation: _Filter, antialias: bool = True) -> Any:
    """Do what torchvision does of an 8-bit picture on a processor with AVX2."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(
        image, size=list(size), mode=interpolation.value, antialias=antialias, align_corners=False
    )


def resize_by_pillow(image: Any, size: Any, interpolation: _Filter, antialias: bool = True) -> Any:
    """Resize as the rule under test does, so that all else can be compared bit for bit."""
    rows = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in image]
    new = [np.array(one.resize(tuple(size)[::-1], Image.Resampling[interpolation.name])) for one in rows]
    return torch.from_numpy(np.stack(new)).permute(0, 3, 1, 2).contiguous()


def resize_to_nothing(image: Any, size: Any, interpolation: _Filter, antialias: bool = True) -> Any:
    """Return a picture of the right size that takes neither time nor memory."""
    return torch.zeros((), dtype=torch.uint8).expand(*image.shape[:2], *size)


def _normalise(image: Any, mean: Any, std: Any, inplace: bool = False) -> Any:
    image = image if inplace else image.clone()
    return image.sub_(mean[:, None, None]).div_(std[:, None, None])


@contextmanager
def image_processor(resize: Callable[..., Any]) -> Iterator[Any]:
    """Give transformers' class, loaded by its file, which works inside of this; nothing of the stand-in is left behind.

    Args:
        resize: does what torchvision's does.
    """
    functional = SimpleNamespace(InterpolationMode=_Filter, resize=resize, normalize=_normalise)
    is_torchvision_available()  # cached, before the stand-in could be taken for an installation
    name = "transformers.models.lfm2_vl.image_processing_lfm2_vl"
    path = Path(transformers.__path__[0], *name.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    v2: Any = ModuleType("torchvision.transforms.v2")
    v2.functional = functional
    stand_ins = {one.__name__: one for one in (ModuleType("torchvision"), ModuleType("torchvision.transforms"), v2)}
    with mock.patch.dict(sys.modules, {**stand_ins, name: module}):
        spec.loader.exec_module(module)
    filters = {2: _Filter.BILINEAR, 3: _Filter.BICUBIC}
    with mock.patch.multiple(
        image_processing_backends, create=True, tvF=functional, pil_torch_interpolation_mapping=filters
    ):
        yield module.Lfm2VlImageProcessor
