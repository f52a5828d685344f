"""What is measured of pictures agrees with other libraries' measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.ndimage import uniform_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.broken import photographs
from edgetune_data.image_facts import ImageFacts, blur, judge, read_images
from edgetune_data.near_duplicates import groups, near_pairs
from edgetune_runtime.errors import ImageError


def blur_effect(image: Image.Image) -> float:
    """The metric of Crété-Roffet et al. by scipy's filter."""
    grey = np.asarray(image.convert("L"), np.float64)
    worst = []
    for axis in (0, 1):
        soft = uniform_filter1d(grey, 11, axis=axis, mode="nearest")
        before, after = (np.abs(np.diff(picture, axis=axis)) for picture in (grey, soft))
        worst.append(1 - np.maximum(0, before - after).sum() / before.sum())
    return float(max(worst))


@pytest.mark.parametrize("photo", photographs()[::4], ids=lambda path: str(path.stem))
def test_blur_is_the_published_metric_and_grows_with_blur(photo: Path) -> None:
    image = Image.open(photo).convert("RGB")
    levels = [blur(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 3)]
    assert levels[0] == pytest.approx(blur_effect(image), abs=1e-5)
    assert levels == sorted(levels)


def test_a_picture_without_edges_is_not_blurred() -> None:
    assert blur(Image.new("RGB", (64, 48), "teal")) == 0.0


def test_brightness_and_entropy_of_known_pictures() -> None:
    half = Image.new("RGB", (100, 100), "black")
    half.paste("white", (0, 0, 100, 50))
    quality = judge(half)
    assert quality.darkest == 0.0 and quality.brightest == pytest.approx(1.0)
    # Two levels in each of three channels, all equally frequent: six equal bins of the joint histogram.
    assert quality.entropy == pytest.approx(np.log2(6))


@settings(deadline=None)
@given(
    left=st.lists(st.integers(0, 2**64 - 1), max_size=6),
    flips=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 63), st.integers(0, 63)), max_size=6),
    near=st.integers(0, 30),
)
def test_pairs_are_those_of_a_plain_count(left: list[int], flips: list[tuple[int, int, int]], near: int) -> None:
    right = [left[index % len(left)] ^ 1 << a ^ 1 << b for index, a, b in flips] if left else []
    expected = {(i, j, (a ^ b).bit_count()) for i, a in enumerate(left) for j, b in enumerate(right)}
    assert set(near_pairs(rows(left), rows(right), near)) == {pair for pair in expected if pair[2] <= near}


def rows(values: list[int]) -> npt.NDArray[np.uint8]:
    return np.array([list(value.to_bytes(8, "big")) for value in values], dtype=np.uint8).reshape(-1, 8)


@settings(deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_groups_are_connected_components(count: int, links: list[tuple[int, int]]) -> None:
    links = [(a % count, b % count) for a, b in links]
    graph = coo_array((np.ones(len(links)), tuple(np.array(links, dtype=int).reshape(-1, 2).T)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    found = groups(count, links)
    assert sorted(index for group in found for index in group) == list(range(count))
    assert {frozenset(group) for group in found} == {
        frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)
    }


def test_pictures_are_read_once_upright_and_whole(tmp_path: Path) -> None:
    Image.effect_noise((40, 20), 60).convert("RGB").save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "a.png").save(tmp_path / "b.jpg", exif=exif)
    (tmp_path / "c.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-200])
    looked: list[tuple[int, int]] = []
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "c.jpg", "a.png", "d.jpg")]
    facts = read_images(paths, looks={"size": lambda image: looked.append(image.size)})
    assert list(facts) == [paths[0], paths[1], paths[2], paths[4]]
    assert isinstance(facts[paths[2]], ImageError) and "truncated" in str(facts[paths[2]])
    assert isinstance(facts[paths[4]], ImageError)
    turned = facts[paths[1]]
    assert isinstance(turned, ImageFacts) and (turned.width, turned.height) == (20, 40)
    assert sorted(looked) == [(20, 40), (40, 20)]
