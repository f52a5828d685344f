"""The frames of boxes, against the conventions of the families' own code."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune_runtime.codec.geometry import Geometry, to_model
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES


def test_llava_pads_like_the_original_code() -> None:
    tall = Geometry(width=101, height=200, resized_width=336, resized_height=336)
    # 99 spare columns: 49 to the left, 50 to the right.
    np.testing.assert_allclose(
        to_model([[0, 0, 101, 200]], tall, FAMILIES["llava"].box_format), [[49 / 200, 0, 150 / 200, 1]]
    )


def test_geometry_must_be_positive() -> None:
    with pytest.raises(InputError, match="positive"):
        Geometry(0, 10, 28, 28)
