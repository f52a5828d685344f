"""What LiquidAI/LFM2-VL-1.6B's preprocessor config says: plain data, for tests with and without transformers."""

from __future__ import annotations

from typing import Any

PUBLISHED: dict[str, Any] = {
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": False,
    "downsample_factor": 2,
    "encoder_patch_size": 16,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Lfm2VlImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 2,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "tile_size": 512,
    "use_thumbnail": True,
}
