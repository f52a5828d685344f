"""Tokens, labels, losses and generated answers, each against what transformers makes of the same records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.bench.metrics import score_grounding
from edgetune_runtime.codec.grounding import parse
from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.records import Record, read_records
from edgetune_train.batch import Collator
from edgetune_train.score import GroundingScorer
from edgetune_train.vision import FeatureInputs, ImageInputs, PixelInputs
from train.conftest import RECORDS, write_records
from train.reference import Reference, conversation

# Answers of RECORDS, written by hand for the three 160x120, 90x200 and 128x128 pictures.
ANSWERS = {
    "qwen3_vl": [
        '[{"bbox_2d": [62, 167, 688, 833], "label": "the left clock"}]',
        '[{"bbox_2d": [56, 25, 667, 300], "label": "the owl above the door"}, '
        '{"bbox_2d": [111, 500, 889, 950], "label": "the owl above the door"}]',
        "[]",
        "red",
        "A cup.",
        '[{"bbox_2d": [133, 170, 622, 890], "label": "shoes"}]',
    ],
    # 160x120 and 90x200 become 168x112 and 84x196; 128x128 becomes 140x140.
    "qwen2_5_vl": [
        '[{"bbox_2d": [10, 19, 116, 93], "label": "the left clock"}]',
        '[{"bbox_2d": [5, 5, 56, 59], "label": "the owl above the door"}, '
        '{"bbox_2d": [9, 98, 75, 186], "label": "the owl above the door"}]',
        "[]",
        "red",
        "A cup.",
        '[{"bbox_2d": [11, 33, 52, 174], "label": "shoes"}]',
    ],
}
REQUESTS = [
    "Locate the left clock and output its bbox coordinates in JSON format.",
    "Locate the owl above the door and output its bbox coordinates in JSON format.",
    "Locate the cactus and output its bbox coordinates in JSON format.",
    "What colour is the cup?",
    "What is on the table?",
    "Where are the shoes?",
]
IMAGES = ["0.png", "1.png", "2.png", "0.png", "2.png", "1.png"]


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def base(request: pytest.FixtureRequest) -> HubCheckpoint:
    return HubCheckpoint.open(request.getfixturevalue(request.param))


@pytest.fixture
def samples(base: HubCheckpoint, data: Path) -> list[Sample]:
    return prepare(read_records(data), base.family, base.spec, base.tokenizer)


@pytest.fixture
def references(base: HubCheckpoint, data: Path) -> list[Reference]:
    rows = zip(IMAGES, REQUESTS, ANSWERS[base.family.name], strict=True)
    return [conversation(base.folder, data.parent / image, text, answer) for image, text, answer in rows]


def test_sequences_are_those_of_the_chat_template(samples: list[Sample], references: list[Reference]) -> None:
    for sample, reference in zip(samples, references, strict=True):
        assert sample.prompt_ids + sample.answer_ids == reference.inputs["input_ids"][0].tolist()
        assert len(sample.prompt_ids) == reference.prompt_length


def test_only_the_answer_and_its_end_are_labelled(
    base: HubCheckpoint, samples: list[Sample], references: list[Reference]
) -> None:
    batch = Collator.of(base, PixelInputs(base.spec))(samples)
    length = batch["input_ids"].shape[1]
    labels = torch.full((len(samples), length), -100)
    labels[:, batch["logits_to_keep"] + 1] = batch["labels"]  # each belongs to the position before it
    for row, ids, mask, reference in zip(labels, batch["input_ids"], batch["attention_mask"], references, strict=True):
        whole = reference.inputs["input_ids"][0]
        assert ids[mask.bool()].tolist() == whole.tolist()
        expected = [-100] * reference.prompt_length + reference.answer_ids
        assert row.tolist() == expected + [-100] * (length - len(expected))
        assert expected[-1] == base.tokenizer.encode("<|im_end|>")[0]
    torch.testing.assert_close(batch["pixel_values"], torch.cat([r.inputs["pixel_values"] for r in references]))
    assert torch.equal(batch["image_grid_thw"], torch.cat([r.inputs["image_grid_thw"] for r in references]))


@pytest.mark.parametrize("cached", [False, True])
def test_loss_is_the_mean_over_answer_tokens(
    base: HubCheckpoint, samples: list[Sample], references: list[Reference], cached: bool
) -> None:
    model = base.load_model(torch.float32).eval()
    images: ImageInputs = FeatureInputs(model, base.spec, 1 << 20) if cached else PixelInputs(base.spec)
    collate = Collator.of(base, images)
    with torch.no_grad():
        loss = model(**collate(samples)).loss
        again = model(**collate(samples)).loss  # with features from the cache
        reference = AutoModelForImageTextToText.from_pretrained(base.folder, dtype=torch.float32).eval()
        surprises: list[torch.Tensor] = []
        for one in references:
            log_probabilities = reference(**one.inputs).logits[0].log_softmax(-1)
            positions = range(one.prompt_length - 1, one.inputs["input_ids"].shape[1] - 1)
            surprises += [-log_probabilities[i, token] for i, token in zip(positions, one.answer_ids, strict=True)]
    torch.testing.assert_close(loss, torch.stack(surprises).mean(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(again, loss, atol=0, rtol=0)


def test_boxes_in_targets_read_back_as_the_records_boxes(base: HubCheckpoint, samples: list[Sample]) -> None:
    for sample in samples:
        if not isinstance(sample.record, Record) or sample.record.boxes is None:
            continue
        text = base.tokenizer.decode(sample.answer_ids)
        boxes = [detection.box for detection in parse(text, sample.geometry, base.family.box_format).detections]
        # Half a step of the coordinates in pixels: 0-1000 of a side up to 200, or at worst 0.6 of a resized pixel.
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4), sample.record.boxes, atol=0.6)


def test_features_past_the_budget_are_computed_again(base: HubCheckpoint, data: Path) -> None:
    model = base.load_model(torch.float32).eval()
    paths = [data.parent / name for name in ("0.png", "1.png", "0.png")]
    kept, dropped = FeatureInputs(model, base.spec, 1 << 20), FeatureInputs(model, base.spec, 0)
    for features in (kept(paths), kept(paths), dropped(paths)):
        pooled = features["mm_encoder_outputs"]["image"].pooler_output
        direct = model.get_image_features(**PixelInputs(base.spec)(paths), return_dict=True).pooler_output
        for one, other in zip(pooled, direct, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_model_that_would_ignore_features_is_refused(base: HubCheckpoint) -> None:
    class Older:
        """A model of transformers 5.17: what it does not know goes unseen into the keyword arguments."""

        def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, **rest: Any) -> None: ...

    with pytest.raises(MissingDependency, match=r"its Older takes no image features"):
        FeatureInputs(Older(), base.spec, 0)


def test_batched_answers_and_scores_are_those_of_single_prompts(
    base: HubCheckpoint, samples: list[Sample], references: list[Reference]
) -> None:
    model = base.load_model(torch.float32).eval()
    scorer = GroundingScorer(base, samples, Collator.of(base, FeatureInputs(model, base.spec, 0)), batch_size=4)
    ground = [i for i, record in enumerate(RECORDS) if "question" not in record and "conversations" not in record]
    assert [samples.index(sample) for sample in scorer.samples] == ground
    limit = max(len(sample.answer_ids) for sample in scorer.samples) + 16
    stop = [base.tokenizer.encode(token)[0] for token in ("<|im_end|>", "<|endoftext|>")]
    texts = []
    for i in ground:
        prompt = references[i].prompt()
        output = model.generate(
            **prompt, do_sample=False, max_new_tokens=limit, eos_token_id=stop, pad_token_id=stop[1]
        )
        new = output[0, references[i].prompt_length :].tolist()
        ended = next((place for place, token in enumerate(new) if token in stop), len(new))
        texts.append(base.tokenizer.decode(new[:ended], keep_control=True))
    assert scorer.generate(model, scorer.samples) == texts
    answers = [parse(text, samples[i].geometry, base.family.box_format) for text, i in zip(texts, ground, strict=True)]
    records = [sample.record for sample in scorer.samples if isinstance(sample.record, Record)]
    expected = score_grounding(answers, records)
    scores = scorer(model)
    assert scores == {"acc50": expected.acc50, "miou": expected.miou, "refusal_accuracy": expected.refusal_accuracy}


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"image": "0.png", "text": "a <|im_end|> trick", "bbox": [1, 2, 30, 40]}, "control token '<|im_end|>'"),
        ({"image": "0.png", "question": "What?", "answer": "so <|im_end|> there"}, "the answer holds"),
        ({"image": "0.png", "text": "a hair", "bbox": [1, 2, 1.01, 40]}, "too thin"),
    ],
)
def test_records_that_cannot_be_written_name_their_line(
    qwen3_vl: Path, tmp_path: Path, record: dict[str, Any], complaint: str
) -> None:
    path = write_records(tmp_path / "data", records=[RECORDS[0], record])
    assert json.loads(path.read_text().splitlines()[1]) == record
    base = HubCheckpoint.open(qwen3_vl)
    with pytest.raises(InputError, match=r"data\.jsonl:2: .*" + complaint.replace("|", r"\|")):
        prepare(read_records(path), base.family, base.spec, base.tokenizer)
