"""What depends only on the shape of an image and the layout of the queries after it: positions, masks, patch order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Grid:
    """Everything that depends only on the image grid and the layout of queries in a sequence.

    Args:
        config: the checkpoint's config.json.
        rows, columns: patches of the image (even).
        length: tokens of the sequence.
        image_at: where the image's placeholders start.
        slots, slot: number of queries and tokens of each; they follow one token after the image.
        device: where the tensors lie.

    Attributes:
        order: [N] row-major index of the patch at every place of the merge order (2 x 2 neighbours in a row).
        corners, weights: [N, 4] learned positions to mix for a patch, and how.
        vision_cos, vision_sin: [N, vision head] rotary tables; text_cos, text_sin: [S, text head].
        image, queries: slices of the sequence.
        mask: [S, S] additive attention mask: causal, and no query sees another.
    """

    def __init__(
        self,
        config: dict[str, Any],
        rows: int,
        columns: int,
        length: int,
        image_at: int,
        slots: int,
        slot: int,
        device: str,
    ) -> None:
        v, t = config["vision_config"], config["text_config"]
        side = int(v["num_position_embeddings"] ** 0.5)
        # Patches come in merge order: 2 x 2 neighbours in a row.
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        order = torch.arange(rows * columns).view(rows // 2, 2, columns // 2, 2).permute(0, 2, 1, 3).flatten()
        y, x = y.flatten()[order], x.flatten()[order]
        self.order = order
        # Learned positions, resampled bilinearly with aligned corners.
        fy, fx = y * (side - 1) / max(rows - 1, 1), x * (side - 1) / max(columns - 1, 1)
        y0, x0 = fy.floor().long(), fx.floor().long()
        y1, x1 = (y0 + 1).clamp(max=side - 1), (x0 + 1).clamp(max=side - 1)
        wy, wx = fy - y0, fx - x0
        self.corners = torch.stack((y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1), 1).to(device)
        self.weights = torch.stack(((1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx), 1).float().to(device)
        half = v["hidden_size"] // v["num_heads"] // 2
        frequency = 10000.0 ** -(torch.arange(0, half, 2) / half)
        angle = torch.cat((y[:, None] * frequency, x[:, None] * frequency), 1)
        self.vision_cos, self.vision_sin = self._table(angle, device)
        # Text positions (temporal, height, width): the image spreads over the last two, text counts on all three.
        merged_rows, merged_columns = rows // 2, columns // 2
        count = merged_rows * merged_columns
        self.image = slice(image_at, image_at + count)
        position = torch.zeros(3, length)
        position[:, :image_at] = torch.arange(image_at)
        position[0, self.image] = image_at
        position[1, self.image] = image_at + torch.arange(merged_rows).repeat_interleave(merged_columns)
        position[2, self.image] = image_at + torch.arange(merged_columns).repeat(merged_rows)
        after = image_at + max(merged_rows, merged_columns)
        start = self.image.stop + 1
        position[:, start - 1] = after
        owner = torch.full((length,), -1)
        owner[:start] = 0
        for index in range(slots):
            own = slice(start + index * slot, start + (index + 1) * slot)
            position[:, own] = after + 1 + torch.arange(slot)
            owner[own] = index + 1
        self.queries = slice(start, start + slots * slot)
        causal = torch.arange(length)[:, None] >= torch.arange(length)[None]
        see = causal & ((owner[None] == 0) | (owner[:, None] == owner[None]))
        see |= torch.eye(length, dtype=torch.bool)
        self.mask = torch.where(see, 0.0, float("-inf")).to(
            device, torch.bfloat16 if device != "cpu" else torch.float32
        )
        head, sections = t["head_dim"], t["rope_parameters"]["mrope_section"]
        frequency = t["rope_parameters"]["rope_theta"] ** -(torch.arange(0, head, 2) / head)
        axis = torch.zeros(head // 2, dtype=torch.long)
        for dimension in (1, 2):  # interleaved: T H W T H W …, the rest is T
            axis[dimension : sections[dimension] * 3 : 3] = dimension
        self.text_cos, self.text_sin = self._table(position[axis].T * frequency, device)

    @staticmethod
    def _table(angle: Tensor, device: str) -> tuple[Tensor, Tensor]:
        angle = torch.cat((angle, angle), 1)
        return angle.cos().float().to(device), angle.sin().float().to(device)
