"""Further figures and the gallery of `edgetune eval` as a user asks for them; scores of boxes against one pass."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import make_data
import reference
from edgetune.cli import cli
from edgetune_core.torch_runner.model import TorchModel
from edgetune_runtime.families import get_family
from edgetune_runtime.images.smart import ImageSpec, preprocess
from edgetune_runtime.records import read_records

TINY = Path(make_data.__file__).parent / "model"
METRICS = ("--metric", "ap", "--metric", "bleu", "--metric", "cider")
SMALL = ("--max-new-tokens", "4", "--threads", "1")


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def scored(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder of eval with every further figure, and what was printed."""
    output = tmp_path_factory.mktemp("eval") / "out"
    return output, evaluate(bundle, "--data", data, "--output", output, *METRICS, *SMALL)


def test_further_figures_are_in_the_table_and_in_the_results(scored: tuple[Path, Result]) -> None:
    output, done = scored
    assert done.exit_code == 0, done.output
    for column in ("AP [95 %]", "exact", "BLEU", "CIDEr-D"):
        assert column in done.stdout
    (row,) = json.loads((output / "results.json").read_text())["rows"]
    # A model of random weights writes no box, which is no precision at any recall.
    assert row["ground"]["coco"]["ap"] == 0.0 and row["ground"]["coco"]["reason"] is None
    assert {"accuracy_interval", "anls_interval", "exact_interval", "bleu_interval", "cider_interval"} < set(row["vqa"])


def test_the_gallery_is_in_the_folder_and_where_it_is_asked_for(
    scored: tuple[Path, Result], bundle: Path, data: Path, tmp_path: Path
) -> None:
    output, _ = scored
    page = tmp_path / "pages" / "worst.html"
    again = evaluate(bundle, "--data", data, "--output", output, "--gallery", page, *METRICS, *SMALL)
    assert "nothing has changed" in again.stderr
    assert page.read_bytes() == (output / "gallery.html").read_bytes()
    alone = evaluate(bundle, "--data", data, "--gallery", tmp_path / "one.html", "--worst", 1, *SMALL)
    assert alone.exit_code == 0, alone.output
    assert (tmp_path / "one.html").read_text().count("<img") == 1


def test_a_missing_library_is_said_before_a_model_is_loaded(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    done = evaluate(bundle, "--data", data, "--metric", "ap", *SMALL)
    assert done.exit_code == 3
    error, hint = done.stderr.splitlines()
    assert error == "error: COCO-style AP needs faster-coco-eval"
    assert hint.startswith("hint: pip install ") and hint.endswith('[metrics]"')


def one_pass(folder: Path, image: Image.Image, text: str, answer: str) -> list[tuple[str, float]]:
    """Each token of an answer with its probability, from one forward pass over prompt and answer."""
    model, tokenizer = reference.load_model(folder), reference.load_tokenizer(folder)
    pixels = preprocess(image, ImageSpec.from_checkpoint(folder))
    prompt = tokenizer(reference.render(tokenizer, text, pixels.image_tokens)).input_ids
    said = tokenizer(answer).input_ids
    ids = torch.tensor([prompt + said])
    with torch.inference_mode():
        logits = model(
            input_ids=ids,
            pixel_values=torch.from_numpy(pixels.pixel_values),
            image_grid_thw=torch.from_numpy(pixels.grid_thw),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        ).logits[0, len(prompt) - 1 : -1]
    chances = torch.softmax(logits.double(), -1)[torch.arange(len(said)), torch.tensor(said)]
    return list(zip((tokenizer.decode([token]) for token in said), chances.tolist(), strict=True))


def test_scores_are_the_mean_log_probability_of_the_digits(tmp_path: Path) -> None:
    """In float32, where one pass over all tokens and one token after the other agree."""
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    make_data.main(["--output", str(tmp_path / "data"), "--test", "2", "--queries", "2"])
    family = get_family("qwen3_vl")
    model = TorchModel(tmp_path / "model", adapter=None, device="cpu")
    compared = 0
    for record in read_records(tmp_path / "data" / "test.jsonl"):
        if record.kind != "ground":
            continue
        answer = model.answer(record.image, model.request(record.text), max_new_tokens=64)
        if len(answer.detections) != 1:
            continue
        tokens = one_pass(tmp_path / "model", Image.open(record.image), record.prompt(family), answer.text)
        inside = False
        digits = []
        for token, chance in tokens:
            inside = (inside or "[" in token.replace("[{", "")) and "]" not in token
            if inside and re.search(r"\d", token):
                digits.append(chance)
        assert 4 <= len(digits) <= 12
        assert answer.detections[0].score == pytest.approx(float(np.exp(np.mean(np.log(digits)))), rel=2e-2)
        compared += 1
    assert compared
