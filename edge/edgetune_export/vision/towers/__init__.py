"""The vision towers that can be written as graphs, by the name that a family gives (`Family.tower`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import onnx_ir as ir

from edgetune_export.vision.attention import Operators
from edgetune_export.vision.towers.idefics3 import Idefics3Tower
from edgetune_export.vision.towers.internvl import InternVLTower
from edgetune_export.vision.towers.lfm2_vl import Lfm2VlTower
from edgetune_export.vision.towers.llava import LlavaTower
from edgetune_export.vision.towers.llava_onevision import OneVisionTower
from edgetune_export.vision.towers.patches import PatchTower
from edgetune_export.vision.writer import VisionSource
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.plugins import Plugins


@runtime_checkable
class Tower(Protocol):
    """Writes the way from pixels to image tokens of a family's models as a graph."""

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph.

        Its inputs are what the family's preprocessing gives as `encoder_arrays`, its first output is
        `image_features` float32 [image tokens, H]. Weights are read when the graph is saved, and linear layers are Gemm
        nodes whose weights have the parameters' names behind "tower.", relative to the family's vision root.

        Args:
            source: the model.
            operators: to attend with.
            dtype: of weights and activations, float32 or float16.

        Raises:
            InputError: the model has a part that cannot be written.
        """

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """The smallest, the usual and the largest shape of each input that has no fixed one.

        Args:
            source: the model.
            spec: its preprocessing.
            tokens: image tokens of one picture at most.
        """


BUILT_IN: Mapping[str, Tower] = {
    "patches": PatchTower(),
    "internvl": InternVLTower(),
    "llava": LlavaTower(),
    "llava_onevision": OneVisionTower(),
    "idefics3": Idefics3Tower(),
    "lfm2_vl": Lfm2VlTower(),
}

OTHERS: Plugins[Tower] = Plugins(
    "edgetune.towers",
    "vision tower",
    "an edgetune_export.vision.towers.Tower",
    lambda found: isinstance(found, Tower),
    built_in=BUILT_IN,
    made=True,
)
"""Towers that installed packages add."""


def tower_of(name: str) -> Tower:
    """The tower of this name.

    Raises:
        InputError: there is none.
        MissingDependency: the package that has it cannot be imported.
    """
    return BUILT_IN[name] if name in BUILT_IN else OTHERS.load(name)
