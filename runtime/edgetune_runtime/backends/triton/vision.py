"""The vision tower of transformers with the checkpoint's weights: a server has room for it, and it is the reference.

A tower of 24 layers is some thousand small kernels, which a GPU runs faster than Python can ask for them. So it is
recorded once a size of picture, as a CUDA graph, and replayed for every other picture of that size.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, vision_utils

from edgetune_runtime.backends.triton.graph import Graph, Pool, new_pool
from edgetune_runtime.backends.triton.weights import PackedCheckpoint
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError
from edgetune_runtime.images.config import Normalise
from edgetune_runtime.images.smart import ImageSpec

RECORDED = 4
"""Sizes of pictures whose graphs are kept, those used last; each has buffers of its own, some 30 MB."""


def load_vision(bundle: Bundle, checkpoint: PackedCheckpoint, device: torch.device, dtype: torch.dtype) -> Tower:
    """The tower of a bundle, on a device.

    Raises:
        BundleError: transformers cannot build it, or tensors are missing.
    """
    root = checkpoint.modules["vision_root"]
    try:
        config: Any = AutoConfig.from_pretrained(bundle.folder, local_files_only=True)
        with torch.device("meta"):  # to learn its class; only the tower is then made for real
            whole = AutoModelForImageTextToText.from_config(config)
        kind: Any = type(whole.get_submodule(root))
        tower: nn.Module = kind(config.vision_config)
        tower.load_state_dict(checkpoint.under(root))
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{bundle.folder}: transformers cannot load the vision tower: {str(error)[:300]}") from error
    tower.to(device).eval().requires_grad_(False)
    for parameter in tower.parameters():  # and no buffers: frequencies of positions stay as exact as they are
        parameter.data = parameter.data.to(dtype)
    spec = bundle.spec
    assert isinstance(spec, ImageSpec)  # which the engine asks for
    values = torch.from_numpy(Normalise(spec.mean, spec.std, spec.rescale).table())
    return Tower(tower, values, spec.temporal_patch_size)


class PatchProduct(nn.Module):
    """A convolution over patches that do not overlap, as the product that it is."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(convolution.weight.flatten(1)), convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """From [P, C] to [P, hidden]."""
        return functional.linear(patches.to(self.weight.dtype), self.weight, self.bias)


class Recorded:
    """The tower's graph for one set of grids, with its inputs and outputs."""

    def __init__(self, tower: Tower, pixels: torch.Tensor, grids: torch.Tensor, pool: Pool | None) -> None:
        self.pixels = pixels.to(tower.device)
        self.features: torch.Tensor
        self._tower, self._grids, self._tables = tower, grids, tower.tables(grids)
        self.graph = Graph(self._run, tower.device, pool=pool)

    def _run(self) -> None:
        self.features = self._tower.run(self.pixels, self._grids, self._tables)


class Tower:
    """A tower of the Qwen families.

    Args:
        module: the tower of transformers.
        values: float32 [3, 256], what the 8-bit values of each channel become for it.
        frames: how often a patch holds the picture.

    Attributes:
        device: where it is.
    """

    def __init__(self, module: nn.Module, values: torch.Tensor, frames: int) -> None:
        patches: Any = module.patch_embed
        if isinstance(patches.proj, nn.Conv3d):
            module.patch_embed = PatchProduct(patches.proj)
        self._module: Any = module
        parameter = next(module.parameters())
        self.device, self._dtype = parameter.device, parameter.dtype
        self._values, self._frames = values.to(self.device).flatten(), frames
        self._channels = 256 * torch.arange(3, device=self.device)
        self._recorded: OrderedDict[tuple[torch.dtype, bytes], Recorded] = OrderedDict()
        self._pool = new_pool(self.device)

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Features of all image tokens; valid until the next call.

        Args:
            pixels: on the host, floats [P, C] as the tower takes them; or uint8 [P, pixels · 3] as they are in the
                picture, one frame, the channels of each pixel together.
            grids: int64 [N, 3], on the host.

        Returns:
            [1 + DeepStack layers, tokens, H] in the tower's dtype: what stands for the tokens, and what is added later.
        """
        key = pixels.dtype, grids.numpy().tobytes()
        if key not in self._recorded:
            self._recorded[key] = Recorded(self, pixels, grids, self._pool)
            while len(self._recorded) > RECORDED:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        recorded = self._recorded[key]
        recorded.pixels.copy_(pixels)
        recorded.graph.replay()
        return recorded.features

    def run(self, pixels: torch.Tensor, grids: torch.Tensor, tables: dict[str, torch.Tensor]) -> torch.Tensor:
        """As `encode`, with pixels on the tower's device, and what `tables` gives for the grids."""
        if pixels.dtype == torch.uint8:
            pixels = self._normalised(pixels)
        told = self._module(pixels.to(self._dtype), grid_thw=grids, **tables)
        return torch.stack([told.pooler_output, *(getattr(told, "deepstack_features", None) or ())])

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """From uint8 [P, pixels · 3] to float32 [P, 3 · frames · pixels]."""
        values = self._values[pixels.view(len(pixels), -1, 3).long() + self._channels].transpose(1, 2)  # [P, 3, pixels]
        return values[:, :, None].expand(-1, -1, self._frames, -1).flatten(1)

    def tables(self, grids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the tower would compute of the grids in every call: places, windows and where segments end.

        The ends stay on the host, which cuts tensors there and would else wait for the GPU in every layer.
        """
        tower, merge = self._module, self._module.spatial_merge_size
        tables = {"position_ids": vision_utils.get_vision_position_ids(grids, merge)}
        if hasattr(tower, "num_grid_per_side"):
            tables["interp_indices"], tables["interp_weights"] = (
                vision_utils.get_vision_interpolation_indices_and_weights(
                    grids,
                    num_grid_per_side=tower.num_grid_per_side,
                    mode=tower.interpolation_mode,
                    align_corners=tower.interpolation_align_corners,
                    spatial_merge_size=merge,
                )
            )
        ends = {"cu_seqlens": vision_utils.get_vision_cu_seqlens(grids)}
        if hasattr(tower, "window_size"):
            tables["window_index"], ends["cu_window_seqlens"] = vision_utils.get_vision_window_index(
                grids, spatial_merge_size=merge, window_size=tower.window_size, patch_size=tower.patch_size
            )
        return {name: table.to(self.device) for name, table in tables.items()} | ends
