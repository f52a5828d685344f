"""A model that reads its weights as it runs computes what transformers computes, in the memory of one block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from builders import copy_checkpoint
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.streaming import FileTensors, Replaced, StreamedModel
from edgetune_export.dequantize import Dequantized
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat, round_to_nearest
from families import checkpoints
from families.reference import question
from reference import load_model
from reference import question as question_of_qwen

TRANSFORMERS: Any = transformers


class Counted:
    """Tensors that count how often each is read."""

    def __init__(self, tensors: FileTensors) -> None:
        self._tensors = tensors
        self.reads: Counter[str] = Counter()
        self.parted: Counter[str] = Counter()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As below."""
        return self._tensors.shapes()

    def read(self, name: str) -> Tensor:
        """As below, noted."""
        self.reads[name] += 1
        return self._tensors.read(name)

    def parts(self, name: str, rows: int) -> Iterator[Tensor]:
        """As below, noted."""
        self.parted[name] += 1
        return self._tensors.parts(name, rows)


def opened(folder: Path, **options: Any) -> tuple[StreamedModel, Counted]:
    """The model of a checkpoint, and its tensors."""
    modules = HubCheckpoint.open(folder).modules
    tensors = Counted(FileTensors(folder, modules))
    config = TRANSFORMERS.AutoConfig.from_pretrained(folder)
    return StreamedModel(config, tensors, modules, name=str(folder), **options), tensors


def asked(folder: Path, width: int = 96, height: int = 64) -> dict[str, Any]:
    """A question about a picture as transformers' own processor gives it to the model."""
    image = Image.effect_noise((width, height), 80).convert("RGB")
    ask = question if (folder / "processor_config.json").is_file() else question_of_qwen
    return ask(folder, image, "Where is the cup?")


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        checkpoints.build_internvl,
        checkpoints.build_llava,
        checkpoints.build_llava_onevision,
        checkpoints.build_smolvlm,
        checkpoints.build_qwen2_vl,
    ],
)
def test_every_family_streams(build: Callable[[Path], Path], tmp_path: Path) -> None:
    """Logits are bit for bit those of the loaded model, and no block stays in memory."""
    folder = build(tmp_path / "checkpoint")
    streamed, _ = opened(folder)
    inputs = asked(folder)
    assert torch.equal(streamed.model(**inputs).logits, load_model(folder)(**inputs).logits)
    modules = HubCheckpoint.open(folder).modules
    assert all(one.is_meta for one in streamed.model.get_submodule(modules.blocks).parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_generate_works_as_always(name: str, request: pytest.FixtureRequest) -> None:
    """With transformers' own loop and cache, each step reading the weights again."""
    folder = request.getfixturevalue(name)
    inputs = asked(folder)
    told = {"max_new_tokens": 5, "do_sample": False}
    ours, theirs = (model.generate(**inputs, **told) for model in (opened(folder)[0].model, load_model(folder)))
    assert torch.equal(ours, theirs)


def test_buffers_are_those_that_loading_computes(qwen3_vl: Path) -> None:
    """No file holds the rotary frequencies."""
    ours, theirs = dict(opened(qwen3_vl)[0].model.named_buffers()), dict(load_model(qwen3_vl).named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_several_questions_read_each_block_once(qwen3_vl: Path) -> None:
    """Pictures of different sizes in turns; the answers are those of one at a time."""
    streamed, tensors = opened(qwen3_vl)
    every = [asked(qwen3_vl, width, height) for width, height in ((64, 64), (160, 64), (64, 192))]
    every.append({"input_ids": torch.arange(20, 40)[None]})  # words alone, which begin behind the vision tower
    tensors.reads.clear()
    together = streamed.run_together([lambda inputs=inputs: streamed.model(**inputs).logits for inputs in every])  # type: ignore[misc]
    blocks = {name: count for name, count in tensors.reads.items() if ".layers." in name or ".blocks." in name}
    assert blocks
    assert set(blocks.values()) == {1}
    model = load_model(qwen3_vl)
    with torch.no_grad():
        assert all(torch.equal(ours, model(**inputs).logits) for ours, inputs in zip(together, every, strict=True))


@torch.no_grad()
def test_units_stay_loaded_where_there_is_room(qwen3_vl: Path) -> None:
    """The second forward reads only what did not fit, and nothing where all fits."""
    inputs = asked(qwen3_vl)
    for keep, again in ((0, True), (1 << 40, False)):
        streamed, tensors = opened(qwen3_vl, keep=keep)
        streamed.model(**inputs)
        tensors.reads.clear()
        streamed.model(**inputs)
        assert any(".layers." in name for name in tensors.reads) is again


@torch.no_grad()
def test_replaced_tensors_take_effect(qwen3_vl: Path) -> None:
    """As the same values in a loaded model do, a head of its own beside the tied token table included."""
    modules = HubCheckpoint.open(qwen3_vl).modules
    name = f"{modules.blocks}.1.mlp.down_proj.weight"
    model = load_model(qwen3_vl)
    values = torch.randn_like(model.get_parameter(name)) * 0.02
    model.get_parameter(name).copy_(values)
    tensors = Replaced(FileTensors(qwen3_vl, modules), {name: lambda: values})
    streamed = StreamedModel(TRANSFORMERS.AutoConfig.from_pretrained(qwen3_vl), tensors, modules)
    inputs = asked(qwen3_vl)
    assert torch.equal(streamed.model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "1 missing keys when loading"),
        (lambda tensors, name: tensors.update(stray=torch.zeros(3)), "1 unexpected keys when loading, such as stray"),
        (lambda tensors, name: tensors.update({name: torch.zeros(3)}), "1 mismatched keys when loading"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    edit: Callable[[dict[str, Tensor], str], object], message: str, qwen3_vl: Path, tmp_path: Path
) -> None:
    """Transformers would fill what is missing with random numbers and go on."""
    folder = copy_checkpoint(qwen3_vl, tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    edit(tensors, next(name for name in sorted(tensors) if "layers.1" in name))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=message):
        opened(folder)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_a_large_head_is_multiplied_part_by_part(name: str, request: pytest.FixtureRequest) -> None:
    """Tied to the token table or not; it is never loaded, and its rows are read once for all questions."""
    folder = request.getfixturevalue(name)
    streamed, tensors = opened(folder, large=1 << 16)
    head = streamed.model.get_output_embeddings()
    assert head.weight.nbytes > 1 << 16
    every = [asked(folder, width, height) for width, height in ((64, 64), (160, 64), (64, 192))]
    together = streamed.run_together([lambda inputs=inputs: streamed.model(**inputs).logits for inputs in every])  # type: ignore[misc]
    assert list(tensors.parted.values()) == [1]
    assert head.weight.is_meta
    model = load_model(folder)
    for ours, inputs in zip(together, every, strict=True):
        torch.testing.assert_close(ours, model(**inputs).logits, rtol=1e-6, atol=1e-6)
        assert torch.equal(streamed.model(**inputs).logits, ours)
    with streamed.loaded(streamed.model):
        assert not head.weight.is_meta


@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantized_rows_are_those_of_the_whole(symmetric: bool) -> None:
    """Also where columns are in another order than the model's."""
    generator = np.random.default_rng(0)
    weight = round_to_nearest(generator.normal(size=(10, 48)).astype(np.float32), BlockFormat(4, 16, symmetric))
    order = generator.permutation(48)
    values = Dequantized(lambda: weight, lambda: order)
    parts = [part.numpy() for part in values.parts(4)]
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts)[:, order], weight.dequantize())
    np.testing.assert_array_equal(values().numpy(), np.concatenate(parts))
    tensors = Replaced(Replaced(None, {}), {"w": values}, {"w": (10, 48)})  # type: ignore[arg-type]
    assert [len(part) for part in tensors.parts("w", 4)] == [4, 4, 2]


def test_rows_of_a_file_come_in_order(qwen3_vl: Path) -> None:
    """Together they are the tensor, and those of a replacing tensor are its own."""
    modules = HubCheckpoint.open(qwen3_vl).modules
    files, name = FileTensors(qwen3_vl, modules), f"{modules.text_root}.embed_tokens.weight"
    other = torch.arange(30.0).view(10, 3)
    tensors = Replaced(files, {"other": lambda: other}, {"other": (10, 3)})
    for one, whole in ((name, files.read(name)), ("other", other)):
        parts = list(tensors.parts(one, 7))
        assert {len(part) for part in parts[:-1]} == {7}
        assert torch.equal(torch.cat(parts), whole)
