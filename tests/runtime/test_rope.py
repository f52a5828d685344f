"""M-RoPE positions against transformers' get_rope_index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText

from edgetune_runtime.errors import InputError
from edgetune_runtime.rope import mrope_positions

IMAGE = 12


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def model(request: pytest.FixtureRequest) -> Any:
    """The model without weights: positions need none."""
    folder: Path = request.getfixturevalue(request.param)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).model


def tokens(pieces: list[tuple[int, tuple[int, int, int] | None]]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Any]:
    """Text runs of the given lengths, each followed by an image of (frames, rows, columns) of tokens."""
    ids: list[int] = []
    grids = []
    for text, image in pieces:
        ids += [1] * text
        if image is not None:
            ids += [IMAGE] * int(np.prod(image))
            grids.append([image[0], image[1] * 2, image[2] * 2])
    return np.array(ids, np.int64), np.array(grids, np.int64).reshape(-1, 3)


image = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.tuples(st.integers(1, 9), st.none() | image), min_size=1, max_size=4))
def test_equal_to_transformers(model: Any, pieces: list[tuple[int, tuple[int, int, int] | None]]) -> None:
    ids, grids = tokens(pieces)
    positions, following = mrope_positions(ids, grids, image_token=IMAGE, merge_size=2)
    expected, delta = model.get_rope_index(
        torch.from_numpy(ids)[None],
        torch.from_numpy(ids == IMAGE).int()[None],
        image_grid_thw=torch.from_numpy(grids) if len(grids) else None,
    )
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert following == len(ids) + int(delta)


def test_counts_that_do_not_match_are_refused() -> None:
    ids, grids = tokens([(3, (1, 2, 3)), (2, None)])
    with pytest.raises(InputError, match="places for 1 images, but 2 are given"):
        mrope_positions(ids, np.concatenate([grids, grids]), image_token=IMAGE, merge_size=2)
    with pytest.raises(InputError, match="an image of 8 tokens has 6 places"):
        mrope_positions(ids, np.array([[1, 4, 8]]), image_token=IMAGE, merge_size=2)
