"""Formats that differ from layer to layer: the sizes they keep, what they are said to cost, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from builders import build_qwen3_vl
from calibrate.walks import load, put
from edgetune.cli import cli
from edgetune_calibrate.batches import batch
from edgetune_calibrate.linears import untie
from edgetune_calibrate.run import calibrate
from edgetune_calibrate.samples import calibration_set
from edgetune_calibrate.sensitivity import drift
from edgetune_calibrate.settings import CalibrateSettings
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.coordinates import box_places, digit_tokens, expected_boxes
from edgetune_core.weightset import HEAD, WeightSet

RTN = ["--method", "rtn"]


def run(checkpoint: Path, data: Path, output: Path, *more: str) -> Result:
    words = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output), *RTN, *more]
    return CliRunner().invoke(cli, ["calibrate", *words])


def packed_bytes(found: WeightSet) -> int:
    """Return what the weights take with codes, scales and zero points packed."""
    total = 0
    for weight in map(found.weight, found.names):
        zeros = 0 if weight.zero_points is None else weight.zero_points.size * weight.bits // 8
        total += weight.codes.size * weight.bits // 8 + 2 * weight.scales.size + zeros
    return total


def moved_boxes(checkpoint: Path, data: Path, found: WeightSet) -> float:
    """Return the mean drift of the records' expected boxes in percent, by two plain forwards of the whole model."""
    source = HubCheckpoint.open(checkpoint)
    model, quantized, digits = load(checkpoint), load(checkpoint), digit_tokens(source.tokenizer)
    if HEAD in found:  # tied to the embedding, which is not quantized
        untie(quantized.get_submodule(HEAD))
    put(quantized, {name: found.weight(name) for name in found.names})
    drifts = []
    for sample in calibration_set(source, data, samples=None, seed=0).samples:
        places, inputs = box_places(sample, source.tokenizer), batch(sample, source, torch.float32)
        if places.digits:
            with torch.no_grad():
                before, after = (
                    expected_boxes(one(**inputs).logits[0, len(sample.prompt_ids) - 1 : -1], places, digits)
                    for one in (model, quantized)
                )
            drifts.append(drift(after, before, places.sides))
    return 100 * float(torch.cat(drifts).mean())


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_budget_is_kept_and_spent(family: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    sizes = {}
    for bits in ("4", "8"):
        done = run(checkpoint, data, tmp_path / bits, "--group-size", "32", "--bits", bits, "--head", "8")
        assert done.exit_code == 0, done.output
        sizes[bits] = packed_bytes(WeightSet.load(tmp_path / bits))
    budget = (sizes["4"] + sizes["8"]) / 2
    words = ("--group-size", "32", "--budget-mb", str(budget / 1e6), "--head", "8")
    done = run(checkpoint, data, tmp_path / "mixed", *words)
    assert done.exit_code == 0, done.output
    found = WeightSet.load(tmp_path / "mixed")
    size, choice = packed_bytes(found), found.fields["calibration"]["choice"]
    assert 0.9 * budget < size <= budget
    assert choice["layers_mb"] == round(size / 1e6, 3)
    assert {found.format(name).bits for name in found.names} == {4, 8}
    chosen = {name: unit["chosen"] for unit in choice["units"] for name in unit["linears"]}
    assert chosen == {
        name: {"bits": fmt.bits, "group_size": fmt.block} for name in found.names for fmt in [found.format(name)]
    }
    assert choice["measured_drop"] == pytest.approx(moved_boxes(checkpoint, data, found), rel=1e-2)
    assert f"{choice['layers_mb']:.2f} MB of layers; boxes of the calibration records move by" in done.stdout


def test_a_limit_of_the_drop_takes_the_fewest_bytes_within_it(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    sizes = []
    for limit in (100.0, 20.0, 4.0):
        settings = CalibrateSettings(method="rtn", bits=(3, 4, 8), group_sizes=(32, 128), max_drop=limit)
        (tmp_path / str(limit)).mkdir()
        choice = calibrate(qwen3_vl, data, tmp_path / str(limit), settings)["weightset"]["calibration"]["choice"]
        assert choice["expected_drop"] <= limit
        assert choice["max_drop"] == limit
        sizes.append(choice["layers_mb"])
        for unit in choice["units"]:  # what is larger than another choice loses less
            tried = sorted(unit["choices"], key=lambda one: one["bytes"])
            assert len(tried) == 6
            assert tried[-1]["drop"] < tried[0]["drop"]
    assert sizes == sorted(set(sizes))
    assert list(tmp_path.glob("*/.*")) == []


@pytest.mark.parametrize(("step", "measured"), [(2, 5), (6, 16)])  # in the second block; when two blocks are solved
def test_a_killed_run_measures_nothing_again(
    step: int, measured: int, qwen3_vl: Path, data: Path, tmp_path: Path
) -> None:
    settings = CalibrateSettings(method="rtn", bits=(4, 8), group_sizes=(32,), budget_mb=0.4)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert total == 8
        if done == step:
            raise Killed

    work, whole = tmp_path / "work", tmp_path / "whole"
    work.mkdir()
    whole.mkdir()
    with pytest.raises(Killed):
        calibrate(qwen3_vl, data, work, settings, progress=kill)
    log = work / ".sensitivity.jsonl"
    lines = log.read_text().splitlines()
    assert len(lines) == 1 + measured  # the key comes first
    marked = json.loads(lines[1])
    marked["choices"][0][2] = 1e-12
    log.write_text("\n".join([lines[0], json.dumps(marked), *lines[2:]]) + "\n")
    done = calibrate(qwen3_vl, data, work, settings)
    assert done["resumed_blocks"] == max(step - 4, 0)
    units = done["weightset"]["calibration"]["choice"]["units"]
    assert units[0]["choices"][0]["drop"] == pytest.approx(1e-4)  # taken from the log
    undisturbed = calibrate(qwen3_vl, data, whole, settings)["weightset"]["calibration"]["choice"]["units"]
    for unit, expected in zip(units[1:], undisturbed[1:], strict=True):
        assert [one["drop"] for one in unit["choices"]] == pytest.approx([one["drop"] for one in expected["choices"]])


def test_each_layer_gets_the_largest_group_size_that_divides_it(data: Path, tmp_path: Path) -> None:
    checkpoint = build_qwen3_vl(tmp_path / "uneven", hidden=192, layers=2)  # 192, 128 and 384 inputs
    output = tmp_path / "set"
    assert "use --group-size 64" in run(checkpoint, data, output).stderr
    done = run(checkpoint, data, output, "--group-size", "32,128,64", "--head", "4")
    assert done.exit_code == 0, done.output
    found = WeightSet.load(output)
    for name in found.names:
        assert found.format(name).block == (64 if found.weight(name).columns == 192 else 128)
    refused = run(checkpoint, data, tmp_path / "other", "--group-size", "128", "--budget-mb", "1", "--bits", "4,8")
    assert refused.exit_code == 2
    assert "192 input columns are not a multiple of the group size 128" in refused.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--bits", "4,8"), "4 and 8 bits: nothing says which layer gets which"),
        (("--bits", "5"), "'5' is not one of 3, 4, 8"),
        (("--group-size", "32,"), "'' is not one of 32, 64, 128"),
        (("--budget-mb", "1", "--max-drop", "1"), "exclude each other"),
        (("--budget-mb", "1", "--bits", "4"), "there is one format to choose from"),
        (("--budget-mb", "0"), "--budget-mb': 0.0 must be above 0"),
        (("--max-drop", "nan"), "--max-drop': nan is not a finite number"),
    ],
)
def test_choices_that_make_no_sense_are_refused(
    words: tuple[str, ...], complaint: str, qwen3_vl: Path, data: Path, tmp_path: Path
) -> None:
    done = run(qwen3_vl, data, tmp_path / "set", *words)
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert not (tmp_path / "set").exists()


def test_a_budget_that_cannot_be_kept_is_told(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    done = run(qwen3_vl, data, tmp_path / "set", "--budget-mb", "0.01")
    assert done.exit_code == 2
    assert "at the fewest bits, more than the budget of 0.01 MB" in done.stderr
    assert not (tmp_path / "set").exists()


def test_records_without_boxes_cannot_choose(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [json.loads(line) for line in data.read_text().splitlines()]
    asked = {"image": str(data.parent / records[0]["image"]), "question": "how many?", "answer": "2"}
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps(asked) + "\n")
    done = run(qwen3_vl, questions, tmp_path / "set", "--budget-mb", "1")
    assert done.exit_code == 2
    assert "no calibration record has a box" in done.stderr
