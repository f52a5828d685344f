"""Batches whose pictures were read ahead: the same as without, bounded, and an error where it belongs."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import edgetune_train.vision
from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import load_image
from edgetune_runtime.records import read_records
from edgetune_train.ahead import ReadAhead
from edgetune_train.batch import Collator, Pack
from edgetune_train.vision import FeatureInputs, ImageInputs, PixelInputs
from train.conftest import RECORDS, write_records

Rows = Sequence[Sample | Pack]


@pytest.fixture
def base(qwen3_vl: Path) -> HubCheckpoint:
    return HubCheckpoint.open(qwen3_vl)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that training decodes."""
    names: list[str] = []

    def load(path: Path) -> Any:
        names.append(path.name)
        return load_image(path)

    monkeypatch.setattr(edgetune_train.vision, "load_image", load)
    return names


def samples_of(base: HubCheckpoint, data: Path) -> list[Sample]:
    return prepare(read_records(data), base.family, base.spec, base.tokenizer)


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for item in items for tensor in tensors(item)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("ahead", [False, True], ids=["", "in a thread"])
@pytest.mark.parametrize("kept", ["nothing", "pixels", "features", "a part of the features"])
def test_batches_are_those_of_no_reading_ahead(
    kept: str, ahead: bool, workers: int, base: HubCheckpoint, data: Path
) -> None:
    """The same bits, also where the features are computed ahead, as they are on a GPU, and by however few threads."""
    model = base.load_model(torch.float32)

    def images() -> ImageInputs:
        if "features" in kept:
            return FeatureInputs(model, base.spec, 10_000 if "part" in kept else 1 << 30, ahead=ahead)
        return PixelInputs(base.spec, 0 if kept == "nothing" else 1 << 30)

    samples = samples_of(base, data)
    rows: list[Rows] = [samples[:2], [(samples[2], samples[3])], samples[4:], samples[::-2], [tuple(samples[1:4])]]
    plain, early = Collator.of(base, images()), Collator.of(base, images())
    with ThreadPoolExecutor(workers) as threads:
        found = list(ReadAhead(iter(rows), early, threads))
    assert len(found) == len(rows)
    for each, batch in zip(rows, found, strict=True):
        expected = plain(each)
        assert list(batch) == list(expected)
        pairs = list(zip(tensors(batch), tensors(expected), strict=True))
        assert len(pairs) > 4 and all(torch.equal(one, other) for one, other in pairs)


def test_no_more_than_the_next_batches_are_begun(base: HubCheckpoint, data: Path, threads: ThreadPoolExecutor) -> None:
    samples = samples_of(base, data)
    taken: list[int] = []

    def rows() -> Iterator[Rows]:
        for number in range(10):
            taken.append(number)
            yield [samples[number % 6]]

    ahead = ReadAhead(rows(), Collator.of(base, PixelInputs(base.spec)), threads, batches=3)
    for number in range(10):
        next(ahead)
        assert taken == list(range(min(10, number + 4)))
    with pytest.raises(StopIteration):
        next(ahead)


def test_pictures_are_decoded_once_while_they_are_near_and_forgotten_after(
    base: HubCheckpoint, data: Path, threads: ThreadPoolExecutor, decoded: list[str]
) -> None:
    samples = {sample.images[0].name: sample for sample in samples_of(base, data)}
    order = ["0.png", "0.png", "1.png", "0.png", "2.png", "2.png", "1.png", "1.png", "0.png"]
    rows: list[Rows] = [[samples[name]] for name in order]
    for _ in ReadAhead(iter(rows), Collator.of(base, PixelInputs(base.spec)), threads, batches=2):
        pass
    # One batch and the next two are held: the last 0.png and the second 1.png come too late for the first.
    assert sorted(decoded) == ["0.png", "0.png", "1.png", "1.png", "2.png"]


@pytest.mark.parametrize("features", [False, True])
def test_a_picture_that_cannot_be_read_is_told_with_its_record_when_its_batch_comes(
    features: bool, base: HubCheckpoint, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    data = write_records(tmp_path / "data", records=RECORDS[:3])
    samples = samples_of(base, data)
    spoilt = data.parent / "2.png"
    spoilt.write_bytes(spoilt.read_bytes()[:-200])
    images: ImageInputs = PixelInputs(base.spec)
    if features:
        images = FeatureInputs(base.load_model(torch.float32), base.spec, 0, ahead=True)
    ahead = ReadAhead(iter([[sample] for sample in samples]), Collator.of(base, images), threads)
    next(ahead), next(ahead)
    with pytest.raises(ImageError, match=rf"^data\.jsonl:3: {spoilt}: broken or truncated image"):
        next(ahead)


def test_training_ends_with_one_line_at_a_broken_picture(qwen3_vl: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "data", records=RECORDS[:3])
    spoilt = data.parent / "1.png"
    spoilt.write_bytes(spoilt.read_bytes()[:-200])
    places = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["train", *places, "--epochs", "1", "--batch-size", "1", "--precision", "fp32"])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: data.jsonl:2: {spoilt}: broken or truncated image")
    assert len(done.stderr.splitlines()) == 2  # and how to mend it


def test_features_are_forgotten_with_their_batch(base: HubCheckpoint, data: Path, threads: ThreadPoolExecutor) -> None:
    """Computed ahead and not kept, only those of the batch and the next ones are in memory."""
    samples = [sample for sample in samples_of(base, data) if sample.images]
    images = FeatureInputs(base.load_model(torch.float32), base.spec, 0, ahead=True)
    begun: list[Any] = []
    begin = images.begin

    def noted(paths: Sequence[Path], pool: ThreadPoolExecutor) -> object:
        future = begin(paths, pool)
        begun.append(weakref.ref(future))
        return future

    images.begin = noted  # type: ignore[method-assign, assignment]
    for _ in ReadAhead(iter([[sample] for sample in samples]), Collator.of(base, images), threads, batches=1):
        for _ in range(1000):  # a thread lets go of what it has done a little later
            if sum(future() is not None for future in begun) <= 2:
                break
            time.sleep(0.01)
        else:
            pytest.fail("features of more than the batch and the next one are held")
