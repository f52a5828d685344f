"""The vision towers of Qwen2.5-VL and Qwen3-VL in a form that torch can export with dynamic image sizes.

The stock towers split the packed patches by lengths read from `image_grid_thw`, which no exporter can trace. Here
everything that depends on the grid (which frame a patch belongs to, which window, its row and column, the taps of the
position table) is a tensor expression of the grid, and attention is one call with a block mask: two patches see each
other if their block ids agree.
Windows need no reordering of the patches that way. The weights are the tower's own modules.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgetune_runtime.errors import InputError

OPSET = 20
"""Opset of the exported vision graph: TensorRT 10.3 and onnxruntime 1.17 read it."""


class PatchLayout(NamedTuple):
    """Where each of P packed patches lies; every field is int64 [P].

    Patches are stored image by image, frame by frame, in merge blocks (block row, block column, row in block, column
    in block).
    """

    frame_start: Tensor
    """Index of the first patch of the patch's own frame: an id of the frame that no other frame has."""
    row: Tensor
    column: Tensor
    height: Tensor
    """Grid height of the patch's image, in patches."""
    width: Tensor


def patch_layout(image_grid_thw: Tensor, patches: int, merge: int) -> PatchLayout:
    """Invert the packing of patches.

    Args:
        image_grid_thw: int64 [N, 3], frames, rows and columns of patches of each image.
        patches: P, the sum of t·h·w over the images.
        merge: side of a merge block, in patches.
    """
    counts = image_grid_thw.prod(dim=1)
    ends = counts.cumsum(dim=0)
    index = torch.arange(patches, dtype=torch.int64, device=image_grid_thw.device)
    image = (index[:, None] >= ends[None, :]).sum(dim=1)  # [P]: the number of images that ended before this patch
    height, width = image_grid_thw[:, 1][image], image_grid_thw[:, 2][image]
    within_image = index - (ends - counts)[image]
    within = within_image % (height * width)
    blocks_per_row = width // merge
    block = within // (merge * merge)
    return PatchLayout(
        frame_start=index - within,
        row=block // blocks_per_row * merge + within // merge % merge,
        column=block % blocks_per_row * merge + within % merge,
        height=height,
        width=width,
    )


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in float32 of states [P, heads, d] by cos and sin [P, 1, d]."""
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


class ExportableVision(nn.Module):
    """What both towers share; a subclass adds its position embedding, its windows and its extra outputs.

    Attributes:
        one_frame: each call encodes one frame of one image, so that attention over a frame needs no mask.
    """

    def __init__(self, tower: nn.Module, *, one_frame: bool = False) -> None:
        super().__init__()
        self.one_frame = one_frame
        config: Any = tower.config
        self.tower: Any
        self.tower = tower
        self.merge: int = config.spatial_merge_size
        self.heads: int = config.num_heads
        projection = self.tower.patch_embed.proj
        # Kernel and stride both equal the patch, so the convolution is a matrix product over the flat patch.
        self.patch_weight = nn.Parameter(projection.weight.detach().flatten(1), requires_grad=False)
        self.patch_bias = (
            None if projection.bias is None else nn.Parameter(projection.bias.detach(), requires_grad=False)
        )

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs of `forward`, in order."""
        return ["image_features"]

    def embed(self, patches: Tensor, layout: PatchLayout) -> Tensor:
        """Patches [P, hidden] with the tower's learned positions added, where it has some."""
        return patches

    def block_ids(self, layout: PatchLayout) -> list[Tensor]:
        """One int64 [P] a layer: patches with equal ids attend to each other in it. Here, the patches of a frame."""
        return [layout.frame_start] * len(self.tower.blocks)

    def extra_output(self, layer: int, hidden: Tensor) -> Tensor | None:
        """A further output [tokens, H] taken after this layer, if any."""
        return None

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, ...]:
        """Encode packed images.

        Args:
            pixel_values: float32 [P, channels·frames·patch·patch].
            image_grid_thw: int64 [N, 3].

        Returns:
            image_features float32 [P / merge², H], then the extra outputs in layer order, of the same shape.
        """
        layout = patch_layout(image_grid_thw, pixel_values.shape[0], self.merge)
        dtype = self.patch_weight.dtype
        hidden = functional.linear(pixel_values.to(dtype), self.patch_weight, self.patch_bias)
        hidden = self.embed(hidden, layout)
        cos, sin = self._rotary(layout)
        masks: dict[int, Tensor | None] = {id(layout.frame_start): None} if self.one_frame else {}
        extras: list[Tensor] = []
        for number, (block, ids) in enumerate(zip(self.tower.blocks, self.block_ids(layout), strict=True)):
            if id(ids) not in masks:  # layers of one kind share the ids tensor, and so the mask
                same = ids[:, None] == ids[None, :]
                masks[id(ids)] = torch.where(same, 0.0, float("-inf")).to(dtype)[None, None]
            hidden = hidden + self._attention(block.attn, block.norm1(hidden), cos, sin, masks[id(ids)])
            hidden = hidden + block.mlp(block.norm2(hidden))
            extra = self.extra_output(number, hidden)
            if extra is not None:
                extras.append(extra.float())
        return (self.tower.merger(hidden).float(), *extras)

    def _rotary(self, layout: PatchLayout) -> tuple[Tensor, Tensor]:
        """Float32 cos and sin, each [P, 1, head dimension], of the axial rotary embedding."""
        frequencies = self.tower.rotary_pos_emb.inv_freq.float()  # [d / 4]
        rows = layout.row[:, None].float() * frequencies
        columns = layout.column[:, None].float() * frequencies
        angles = torch.cat((rows, columns, rows, columns), dim=-1)[:, None, :]
        return angles.cos(), angles.sin()

    def _attention(self, module: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Full attention among P patches, under an additive mask [1, 1, P, P] where there is one."""
        patches = hidden.shape[0]
        query, key, value = module.qkv(hidden).reshape(patches, 3, self.heads, -1).unbind(1)  # each [P, heads, d]
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        # [1, heads, P, d]
        mixed = functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None], attn_mask=mask
        )
        result: Tensor = module.proj(mixed[0].transpose(0, 1).reshape(patches, -1))
        return result


class WindowedVision(ExportableVision):
    """Qwen2.5-VL: most layers attend within square windows, the ones of `fullatt_block_indexes` over the frame."""

    def __init__(self, tower: nn.Module, *, one_frame: bool = False) -> None:
        super().__init__(tower, one_frame=one_frame)
        config = self.tower.config
        self.window: int = (
            config.window_size // config.patch_size // self.merge * self.merge
        )  # side of a window, in patches
        self.full_layers = frozenset(config.fullatt_block_indexes)

    def block_ids(self, layout: PatchLayout) -> list[Tensor]:
        """Frame ids in the full-attention layers, window ids in the others."""
        per_row = (layout.width + self.window - 1) // self.window
        # A frame has at least as many patches as windows, so ids of different frames cannot meet.
        windows = layout.frame_start + layout.row // self.window * per_row + layout.column // self.window
        return [layout.frame_start if i in self.full_layers else windows for i in range(len(self.tower.blocks))]


class DeepStackVision(ExportableVision):
    """Qwen3-VL: a learned position table resampled to each grid, and a feature map after some layers (DeepStack)."""

    @property
    def output_names(self) -> list[str]:
        """The merged features, then one name a DeepStack layer."""
        return ["image_features", *(f"deepstack_features_{i}" for i in range(len(self.tower.deepstack_merger_list)))]

    def embed(self, patches: Tensor, layout: PatchLayout) -> Tensor:
        """Add the position table, bilinearly resampled with aligned corners."""
        side: int = self.tower.num_grid_per_side
        tops, top_weights = _taps(layout.row, layout.height, side)
        lefts, left_weights = _taps(layout.column, layout.width, side)
        index = (tops[:, :, None] * side + lefts[:, None, :]).flatten(1)  # [P, 4]
        weight = (top_weights[:, :, None] * left_weights[:, None, :]).flatten(1)
        table: Tensor = self.tower.pos_embed.weight
        return patches + (table[index].float() * weight[:, :, None]).sum(dim=1).to(patches.dtype)

    def extra_output(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The merged feature map of a DeepStack layer."""
        layers = list(self.tower.deepstack_visual_indexes)
        if layer not in layers:
            return None
        merged: Tensor = self.tower.deepstack_merger_list[layers.index(layer)](hidden)
        return merged


def _taps(position: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Neighbours [P, 2] in a table axis of length `side`, and weights, of positions [P] on an axis of length `size`."""
    source = position.float() * (side - 1) / (size - 1).clamp(min=1)
    low = source.floor()
    fraction = source - low
    # Rounding may push the last position past the table's end, where its weight is zero but its index must still exist.
    taps = torch.stack((low, low + 1), dim=1).long().clamp(0, side - 1)
    return taps, torch.stack((1 - fraction, fraction), dim=1)


_WRAPPERS: dict[str, type[ExportableVision]] = {"qwen2_5_vl": WindowedVision, "qwen3_vl": DeepStackVision}


def exportable_vision(model_type: str, tower: nn.Module, *, one_frame: bool = False) -> ExportableVision:
    """Wrap the vision tower of a checkpoint; `InputError` for a model type without a wrapper."""
    if model_type not in _WRAPPERS:
        raise InputError(
            f"no exportable vision tower for model type {model_type!r}",
            hint=f"supported: {', '.join(sorted(_WRAPPERS))}",
        )
    return _WRAPPERS[model_type](tower, one_frame=one_frame).eval()


def export_vision(wrapper: ExportableVision) -> ir.Model:
    """Trace the wrapper with dynamic numbers of patches and images (one image where it takes one frame).

    Returns:
        The ONNX model with inputs pixel_values, image_grid_thw and the wrapper's outputs.
    """
    unit = wrapper.merge * wrapper.merge
    grid = torch.tensor([[1, 2 * wrapper.merge, 3 * wrapper.merge], [1, 4 * wrapper.merge, 2 * wrapper.merge]])
    if wrapper.one_frame:
        grid = grid[:1]
    example = (torch.zeros(int(grid.prod(dim=1).sum()), wrapper.patch_weight.shape[1]), grid)
    blocks, images = torch.export.Dim("blocks", min=1), torch.export.Dim("images", min=1)
    # It warns of an absent torchvision, whose operators no vision tower here uses.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by torch.export about its own internals
        program = torch.onnx.export(
            wrapper,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values", "image_grid_thw"],
            output_names=wrapper.output_names,
            dynamic_shapes=({0: unit * blocks}, {} if wrapper.one_frame else {0: images}),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    _name_dimensions(model, ("patches",) if wrapper.one_frame else ("patches", "images"))
    for node in model.graph:  # the tracer notes the lines of source that made a node, by their paths on this machine
        node.metadata_props.clear()
    return model


def _name_dimensions(model: ir.Model, names: tuple[str, ...]) -> None:
    """Give the free dimensions of the inputs the names that readers of the graph expect."""
    for value, name in zip(model.graph.inputs, names, strict=False):
        value.shape = ir.Shape([name, *list(value.shape or ())[1:]])
    for value in model.graph.outputs:
        value.shape = ir.Shape(["tokens", *list(value.shape or ())[1:]])
