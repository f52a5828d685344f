"""The package of docs/extending.md, installed as it is printed there; each of the six things that it adds is used."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import onnx
import pytest
import transformers
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from builders import REPOSITORY
from edgetune.cli import cli
from edgetune.doctor.plugins import HOMES
from edgetune_core.checkpoint import HubCheckpoint, tensor_shapes
from edgetune_data import formats
from edgetune_runtime import Session
from families.checkpoints import build_llava
from packages import search, write_package
from train.conftest import write_records

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def shop(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    [project] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    project = tomllib.loads(project)["project"]
    modules = dict(re.findall(r"```python\n# (shop/\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
    site = write_package(
        tmp_path_factory.mktemp("site"),
        project["entry-points"],
        {"shop/__init__.py": "", **modules},
        name=project["name"],
        version=project["version"],
    )
    search(site, monkeypatch)
    formats.others.cache_clear()


def run(*words: object) -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in words], prog_name="edgetune")
    assert done.exit_code == 0, done.output
    return done


def test_the_page_names_every_group() -> None:
    rows = re.findall(r"^\| `(edgetune\.\w+)` ", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(re.findall(r'entry-points\."(.*?)"', PAGE)) and len(rows) == 7
    assert sorted(rows) == sorted(HOMES)  # what the doctor looks at


def test_a_verb_is_listed_with_its_package_and_runs(tmp_path: Path) -> None:
    assert re.search(r"Verbs of other packages:\n +stock +Of shop 1\.0\.\n", run("--help").stdout)
    data = write_records(tmp_path / "data")
    assert json.loads(run("stock", data, "--json").stdout) == {
        "shoes": 1,
        "the left clock": 1,
        "the owl above the door": 2,
    }
    assert run("stock", data, "--least", 2).stdout.splitlines()[2:] == ["the owl above the door      2"]
    assert "Leave out what there is less of." in run("stock", "--help").stdout
    words = {"COMP_WORDS": "edgetune st", "COMP_CWORD": "1", "_EDGETUNE_COMPLETE": "bash_complete"}
    assert CliRunner().invoke(cli, [], prog_name="edgetune", env=words).stdout == "plain,stock\n"
    wrong = CliRunner().invoke(cli, ["stokc"], prog_name="edgetune")
    assert wrong.exit_code == 2 and "stock" in wrong.stderr


def test_a_format_and_a_redactor_are_used_on_data(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), "white").save(tmp_path / "desk.png")
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"photo": "desk.png", "what": "cup", "where": [1, 2, 30, 40]}]))
    run("data", "convert", listed, "--output", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "data.jsonl").read_text())
    assert (record["text"], record["bbox"]) == ("cup", [1, 2, 30, 40])

    found = json.loads(run("data", "check", tmp_path / "out", "--redactor", "prices", "--json").stdout)["findings"]
    assert [item["boxes"] for item in found if item["rule"] == "private"] == [[[0, 45, 100, 50]]]


def test_an_export_format_is_written_and_its_engine_answers(qwen3_vl: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "till"
    run("export", "--checkpoint", qwen3_vl, "--format", "till", "--precision", "fp32", "--output", bundle)
    picture = Image.new("RGB", (64, 64), "red")
    with Session.load(bundle, threads=1) as session, Session.load(bundle, threads=1, engine="till") as named:
        assert session.bundle.format == "till"
        assert session.ask(picture, "What is it?", max_new_tokens=4) == named.ask(
            picture, "What is it?", max_new_tokens=4
        )


def test_a_family_is_trained_merged_and_read_back(tmp_path: Path) -> None:
    base = build_llava(tmp_path / "base")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "shop_vl", "architectures": ["ShopModel"]}))

    data, adapter, merged = write_records(tmp_path / "data"), tmp_path / "adapter", tmp_path / "merged"
    options = ["--epochs", 1, "--batch-size", 3, "--rank", 4, "--precision", "fp32"]
    run("train", "--checkpoint", base, "--data", data, "--output", adapter, *options)
    run("merge", "--checkpoint", base, "--adapter", adapter, "--output", merged)
    checkpoint = HubCheckpoint.open(merged)
    assert (checkpoint.family.title, checkpoint.config["model_type"]) == ("Shop-VL", "shop_vl")
    assert tensor_shapes(merged) == tensor_shapes(base)
    told = run("run", merged, data.parent / "0.png", "the clock", "--max-new-tokens", 2, "--json")
    assert json.loads(told.stdout)["results"][0]["phrase"] == "the clock"
    run("export", "--checkpoint", merged, "--precision", "fp32", "--output", tmp_path / "bundle")
    assert onnx.load(tmp_path / "bundle" / "onnx" / "vision_encoder.onnx").producer_name == "shop"
