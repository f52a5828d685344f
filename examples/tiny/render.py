"""Layouts to pixels, many scenes at once, on whatever device holds the assets.

The same code draws training batches on a GPU and the pictures of the test split on a CPU, so both come from one
distribution. Objects are sampled bilinearly from one of two sizes of their sprite (the nearer above the target size)
and blended over a crop of the photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from scenes import ASSETS, OBJECTS, PHOTOS, Scene

CELL, COLUMNS, SLOTS = 112, 24, 7
PHOTO_W, PHOTO_H = 640, 480


@dataclass
class Assets:
    """Texels that lie one picture after the other.

    Attributes:
        sprites: uint8 [texels, 4] premultiplied RGBA, all cells at 112 px and then all at 56 px.
        photos: uint8 [texels, 3].
    """

    sprites: torch.Tensor
    photos: torch.Tensor


def load_assets(device: str = "cpu") -> Assets:
    """Read the committed atlas and photographs."""
    atlas = np.asarray(Image.open(ASSETS / "objects.webp").convert("RGBA"), dtype=np.float32)
    cells = np.stack(
        [atlas[i // COLUMNS * CELL :, i % COLUMNS * CELL :][:CELL, :CELL] for i in range(len(OBJECTS))]
    )  # [objects, 112, 112, 4]
    cells[..., :3] *= cells[..., 3:] / 255
    half = cells.reshape(len(cells), CELL // 2, 2, CELL // 2, 2, 4).mean((2, 4))
    texels = np.concatenate([cells.reshape(-1, 4), half.reshape(-1, 4)]).round().astype(np.uint8)
    photos = np.stack([np.asarray(Image.open(ASSETS / "photos" / name).convert("RGB")) for name in PHOTOS])
    return Assets(torch.from_numpy(texels).to(device), torch.from_numpy(photos.reshape(-1, 3)).to(device))


def pack(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of one canvas size as arrays: things float32 [B, 7, 10], photos float32 [B, 6]."""
    things = np.zeros((len(scenes), SLOTS, 10), np.float32)
    photos = np.zeros((len(scenes), 6), np.float32)
    for b, scene in enumerate(scenes):
        photos[b] = (scene.photo, *scene.crop, scene.photo_mirrored)
        for k, thing in enumerate(scene.things):
            facts = OBJECTS[thing.kind]
            x0, y0, x1, y1 = thing.box
            small = max(x1 - x0, y1 - y0) < 0.62 * CELL
            things[b, k] = (
                thing.kind, x0, y0, x1, y1, thing.mirrored, thing.brightness, small, facts["width"], facts["height"],
            )  # fmt: skip
    return things, photos


def render(
    assets: Assets,
    things: torch.Tensor,
    photos: torch.Tensor,
    width: int,
    height: int,
    regions: bool | None = None,
) -> torch.Tensor:
    """Draw packed scenes. Returns float32 [B, H, W, 3] in 0..255, not yet rounded.

    With `regions` objects are drawn one at a time and only where they can be (a CPU's default); without, each is
    blended over whole canvases of all scenes at once (a GPU's default). The pictures are the same.
    """
    device = things.device
    regions = device.type == "cpu" if regions is None else regions
    xs = torch.arange(width, device=device, dtype=torch.float32)[None, None, :] + 0.5
    ys = torch.arange(height, device=device, dtype=torch.float32)[None, :, None] + 0.5
    photo, cx, cy, cw, ch, flip = (photos[:, i, None, None] for i in range(6))
    u = torch.where(flip > 0.5, 1 - xs / width, xs / width)
    canvas = _sample(
        assets.photos,
        photo.long() * (PHOTO_W * PHOTO_H),
        torch.full_like(photo, PHOTO_W).long(),
        (cx + cw * u) * PHOTO_W - 0.5,
        (cy + ch * ys / height) * PHOTO_H - 0.5,
        torch.full_like(photo, PHOTO_W),
        torch.full_like(photo, PHOTO_H),
    )
    if regions:
        for b in range(len(things)):
            for k in range(SLOTS):
                left, top, right, bottom = things[b, k, 1:5].tolist()
                rows, columns = slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)
                part = things[b : b + 1, k]
                canvas[b : b + 1, rows, columns] = _blend(
                    assets, canvas[b : b + 1, rows, columns], part, xs[..., columns], ys[:, rows]
                )
    else:
        for k in range(SLOTS):
            canvas = _blend(assets, canvas, things[:, k], xs, ys)
    return canvas.clamp(0, 255)


def _blend(
    assets: Assets, canvas: torch.Tensor, thing: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor
) -> torch.Tensor:
    """Lay one object of every scene, thing [B, 10], over canvas [B, H, W, 3] whose pixel centres are xs and ys."""
    small_base = len(OBJECTS) * CELL * CELL
    kind, x0, y0, x1, y1, mirrored, brightness, small, w, h = (thing[:, i, None, None] for i in range(10))
    shrink = torch.where(small > 0.5, 0.5, 1.0)
    cell = torch.where(small > 0.5, CELL // 2, CELL).long()
    base = torch.where(small > 0.5, small_base + kind.long() * (CELL // 2) ** 2, kind.long() * CELL**2)
    u, v = (xs - x0) / (x1 - x0).clamp(min=1), (ys - y0) / (y1 - y0).clamp(min=1)
    inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1) & (x1 > x0)
    u = torch.where(mirrored > 0.5, 1 - u, u)
    texel = _sample(assets.sprites, base, cell, u * w * shrink - 0.5, v * h * shrink - 0.5, w * shrink, h * shrink)
    texel = torch.where(inside[..., None], texel, 0.0)
    return canvas * (1 - texel[..., 3:] / 255) + texel[..., :3] * brightness[..., None]


def _sample(
    flat: torch.Tensor,
    base: torch.Tensor,
    stride: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    width: torch.Tensor,
    height: torch.Tensor,
) -> torch.Tensor:
    """Bilinear texels float32 [B, H, W, C] at (x, y) of pictures lying in `flat` at `base`, rows `stride` apart."""
    x, y = x.clamp(min=0).minimum(width - 1), y.clamp(min=0).minimum(height - 1)
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    x1, y1 = (x0 + 1).minimum((width - 1).ceil()), (y0 + 1).minimum((height - 1).ceil())
    row0, row1 = base + y0.long() * stride, base + y1.long() * stride

    def texel(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return flat[row + column.long()].float()

    top = texel(row0, x0) * (1 - fx) + texel(row0, x1) * fx
    bottom = texel(row1, x0) * (1 - fx) + texel(row1, x1) * fx
    return top * (1 - fy) + bottom * fy


def night(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A dim, noisy, bluish camera: pictures [B, H, W, 3] in 0..255 to the same, darkened, with sensor noise."""
    shape = (len(pictures), 1, 1, 1)
    gain = 0.10 + 0.10 * torch.rand(shape, generator=generator)
    tint = torch.tensor([0.75, 0.9, 1.25]).view(1, 1, 1, 3)
    linear = (pictures / 255) ** 1.3 * gain * tint
    shot = torch.randn(pictures.shape, generator=generator) * (linear.clamp(min=0) * 0.004).sqrt()
    read = torch.randn(pictures.shape, generator=generator) * 0.018
    return ((linear + shot + read) * 255).clamp(0, 255)
