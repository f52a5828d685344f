"""Pictures with boxes on them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from edgetune_runtime.codec.grounding import Detection

# Okabe & Ito's colours, told apart by colour-blind readers too; yellow and black are left out.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_detections(
    image: Image.Image,
    detections: Sequence[Detection],
    *,
    color: str | Sequence[str] | None = None,
    line_width: int | None = None,
) -> Image.Image:
    """Return a copy of an image with boxes and their labels; sizes follow the image's.

    Examples:
        >>> from PIL import Image
        >>> from edgetune_runtime import Detection, draw_detections
        >>> image = Image.open("photo.png")
        >>> drawn = draw_detections(image, [Detection((10, 10, 60, 40), "the owl")], color="red")
        >>> drawn.size == image.size and drawn.getpixel((10, 25))
        (255, 0, 0)

    Args:
        image: the upright image that the boxes belong to.
        detections: boxes in pixels of it; what leaves the image is cut off by its edge.
        color: one colour for all (a name or "#rrggbb"), or one for each; None takes a colour of the palette for each
            label.
        line_width: of the boxes, in pixels; None chooses one.
    """
    canvas = image.convert("RGB")
    pen = ImageDraw.Draw(canvas)
    line = line_width or max(2, round(min(canvas.size) / 200))
    font = ImageFont.load_default(size=max(11, round(min(canvas.size) / 32)))
    labels = list(dict.fromkeys(detection.label for detection in detections))
    chosen = [color] * len(detections) if isinstance(color, str) else color
    for index, detection in enumerate(detections):
        ink = chosen[index] if chosen else PALETTE[labels.index(detection.label) % len(PALETTE)]
        x1, y1, x2, y2 = detection.box
        if x1 >= x2 or y1 >= y2:
            continue  # nothing to see, and Pillow refuses to draw it
        pen.rectangle((x1, y1, x2, y2), outline=ink, width=line)
        text = detection.label if detection.score is None else f"{detection.label} {detection.score:.0%}".strip()
        if text:
            _draw_label(pen, text, (x1, y1, x2, y2), ink, font, canvas.size)
    return canvas


def _draw_label(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: tuple[float, float, float, float],
    ink: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Write a label on a plate above the box, or inside its top where there is no room, within the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = 3
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else min(max(box[1], 0), max(size[1] - height, 0))
    pen.rectangle((x, y, x + width, y + height), fill=ink)
    red, green, blue = ImageColor.getrgb(ink)[:3]
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 150  # ITU-R BT.601 luma
    pen.text((x + pad - left, y + pad - top), text, fill="black" if bright else "white", font=font)
