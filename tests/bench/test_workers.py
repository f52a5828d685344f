"""What the two workers write: agreement with transformers used directly, and with each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image, ImageOps
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
)

from edgetune_runtime.records import read_records

NEW_TOKENS = 12
TORCH = "edgetune_core.torch_runner.worker"


class _Qwen3VLWithoutVideo(Qwen3VLProcessor):
    """The processor as it is, without the video part, which needs torchvision."""

    def check_argument_for_proper_class(self, *_: object) -> None:
        pass


class _Qwen25VLWithoutVideo(Qwen2_5_VLProcessor):
    def check_argument_for_proper_class(self, *_: object) -> None:
        pass


def work(module: str, *arguments: object, output: Path) -> dict[str, Any]:
    """Run a worker to its end and return what it wrote."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--output", str(output)]
    subprocess.run([*command, "--max-new-tokens", str(NEW_TOKENS), "--threads", "1"], check=True)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def reference(checkpoint: Path, data: Path, adapter: Path | None = None) -> list[str]:
    """Answers of transformers' own processor and generate."""
    processors = {"qwen3_vl": _Qwen3VLWithoutVideo, "qwen2_5_vl": _Qwen25VLWithoutVideo}
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto")
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    processor: Any = processors[model.config.model_type](
        image_processor=AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),  # type: ignore[no-untyped-call]
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=tokenizer.chat_template,
    )
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    answers = []
    for record in read_records(data):
        ask = f"Locate {record.text} and output its bbox coordinates in JSON format."
        image = ImageOps.exif_transpose(Image.open(record.image)).convert("RGB")
        text = record.text if record.kind == "vqa" else ask
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        inputs: Any = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        new = output[0, inputs["input_ids"].shape[1] :]
        if record.kind == "vqa":  # answered in words
            answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        else:
            answers.append(tokenizer.decode(new).removesuffix("<|im_end|>").removesuffix("<|endoftext|>"))
    return answers


def test_a_bound_of_the_pictures_is_that_of_transformers_in_both_workers(
    qwen3_vl: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """The reference reads a copy of the checkpoint whose own preprocessor config has the bound."""
    bound = 96 * 64
    (tmp_path / "bounded").mkdir()
    for file in qwen3_vl.iterdir():
        (tmp_path / "bounded" / file.name).symlink_to(file)
    place = tmp_path / "bounded" / "preprocessor_config.json"
    config = json.loads(place.read_text())
    config["size"]["longest_edge"] = bound
    place.unlink()
    place.write_text(json.dumps(config))
    expected = reference(tmp_path / "bounded", data)
    assert expected != reference(qwen3_vl, data)

    limit = ("--data", data, "--max-pixels", bound)
    checkpoint = work(TORCH, "--checkpoint", qwen3_vl, *limit, output=tmp_path / "torch.json")
    exported = work("edgetune_runtime.bench.worker", "--bundle", bundle, *limit, output=tmp_path / "bundle.json")
    assert raws(checkpoint) == expected
    asked = [number for number, row in enumerate(exported["rows"]) if row["kind"] == "vqa"]  # boxes keep to a grammar
    assert asked and [raws(exported)[number] for number in asked] == [expected[number] for number in asked]
    processor: Any = AutoImageProcessor.from_pretrained(tmp_path / "bounded", backend="pil")
    pictures = [ImageOps.exif_transpose(Image.open(record.image)).convert("RGB") for record in read_records(data)]
    grids = [processor(images=picture)["image_grid_thw"][0] for picture in pictures]
    tokens = [int(grid.prod()) // processor.merge_size**2 for grid in grids]
    for report in (checkpoint, exported):
        assert [row["image_tokens"] for row in report["rows"]] == tokens


@pytest.fixture(scope="module")
def torch_report(qwen3_vl: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("torch") / "out.json"
    return work(TORCH, "--checkpoint", qwen3_vl, "--data", data, output=output)


@pytest.fixture(scope="module")
def bundle_report(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("bundle") / "out.json"
    return work("edgetune_runtime.bench.worker", "--bundle", bundle, "--data", data, output=output)


def raws(report: dict[str, Any]) -> list[str]:
    return [row["raw"] for row in report["rows"]]


def test_the_torch_worker_says_what_transformers_says(torch_report: dict[str, Any], qwen3_vl: Path, data: Path) -> None:
    answers = reference(qwen3_vl, data)
    assert raws(torch_report) == answers
    assert len(set(answers)) > 3, "answers that hardly differ would prove little"


def test_the_torch_worker_runs_qwen2_5_vl(qwen2_5_vl: Path, data: Path, tmp_path: Path) -> None:
    report = work(TORCH, "--checkpoint", qwen2_5_vl, "--data", data, output=tmp_path / "o.json")
    assert raws(report) == reference(qwen2_5_vl, data)


def test_an_adapter_is_applied(torch_report: dict[str, Any], qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(qwen3_vl, dtype="auto")
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lora.save_pretrained(str(tmp_path / "adapter"))
    arguments = ("--checkpoint", qwen3_vl, "--adapter", tmp_path / "adapter", "--data", data)
    report = work(TORCH, *arguments, output=tmp_path / "o.json")
    assert raws(report) == reference(qwen3_vl, data, tmp_path / "adapter")
    assert raws(report) != raws(torch_report)


def test_the_bundle_worker_says_what_the_torch_worker_says(
    torch_report: dict[str, Any], bundle_report: dict[str, Any]
) -> None:
    for ours, theirs in zip(bundle_report["rows"], torch_report["rows"], strict=True):
        same = ("raw", "source", "image", "kind", "text", "truth", "boxes", "labels", "status", "complete", "expected")
        assert {key: ours.get(key) for key in same} == {key: theirs.get(key) for key in same}
        assert ours["tokens"] == theirs["tokens"]


def test_costs_are_consistent(torch_report: dict[str, Any], bundle_report: dict[str, Any], bundle: Path) -> None:
    assert bundle_report["size_bytes"] == sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    for report in (torch_report, bundle_report):
        assert report["threads"] == 1
        assert 0 < report["load_s"] < report["cold_start_s"]
        assert report["peak_rss_bytes"] > 50_000_000
        for row in report["rows"]:
            times = row["timings"]
            stages = [times[stage] for stage in ("preprocess", "vision", "prefill", "decode")]
            assert min(stages[:3]) > 0
            assert sum(stages) <= times["total"] * 1.000001
            # Nothing of weight is left unaccounted for.
            assert sum(stages) > 0.8 * times["total"]
    assert bundle_report["peak_rss_bytes"] < torch_report["peak_rss_bytes"]


def test_a_repeated_picture_is_encoded_again(bundle_report: dict[str, Any]) -> None:
    """Records 1 and 4 share a picture; a cache would make the second one's vision stage vanish."""
    assert bundle_report["rows"][3]["timings"]["vision"] > 0


def test_rounds_deal_the_records_out(bundle: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--bundle", bundle, "--data", data, "--limit", 5, "--round", "2/2")
    report = work("edgetune_runtime.bench.worker", *arguments, output=tmp_path / "o.json")
    assert [row["source"] for row in report["rows"]] == ["eval.jsonl:2", "eval.jsonl:4"]


def test_rounds_divide_a_shard_of_what_the_limit_leaves(bundle: Path, data: Path, tmp_path: Path) -> None:
    """Of records 1 to 5, the first, third and fourth ask about the first and the third picture."""
    arguments = ("--bundle", bundle, "--data", data, "--limit", 5, "--shard", "1/2", "--round", "2/2")
    report = work("edgetune_runtime.bench.worker", *arguments, output=tmp_path / "o.json")
    assert [row["source"] for row in report["rows"]] == ["eval.jsonl:3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "nowhere"], "nowhere: no such folder"),
        (["--round", "0/2"], "--round 0/2: must be I/N"),
        (["--round", "9/20"], "no records to answer"),
        (["--shard", "0/2"], "shard 0/2: there is no shard 0 of 2"),
        (["--shard", "1/4"], "shard 1/4: there are only 3 pictures to divide"),
    ],
)
def test_bad_input_of_a_worker_is_one_line(
    bundle: Path, data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "edgetune_runtime.bench.worker", "--bundle", str(bundle), "--data", str(data)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "o.json"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert all(line.startswith("hint: ") for line in rest)
    assert not (tmp_path / "o.json").exists()


def test_a_checkpoint_without_its_preprocessor_config_is_refused(
    torch_report: dict[str, Any], qwen3_vl: Path, data: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (bare / name).write_bytes((qwen3_vl / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        TORCH,
        "--checkpoint",
        str(bare),
        "--data",
        str(data),
    ]
    done = subprocess.run([*command, "--output", str(tmp_path / "o")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no preprocessor_config.json" in done.stderr
