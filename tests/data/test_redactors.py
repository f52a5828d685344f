"""Redactors are plugins: an installed package is found, a real detector finds a face, a wrong name is told."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw, ImageFont

from data.broken import Writer, face, photographs
from edgetune.cli import cli
from packages import search, write_package

PLUGIN = '''
from edgetune_data.redactors import Region

class Reds:
    """Finds the bounding box of pure red."""

    def find(self, image):
        bands = image.split()
        mask = bands[0].point(lambda v: 255 * (v > 250))
        for band in bands[1:]:
            mask = Image.composite(mask, Image.new("L", image.size), band.point(lambda v: 255 * (v < 5)))
        box = mask.getbbox()
        return [Region(tuple(map(float, box)), "red", 0.5)] if box else []

from PIL import Image
'''


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *map(str, arguments)], prog_name="edgetune")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a redactor, installed as pip leaves one."""
    points = {"edgetune.redactors": {"reds": "reds_plugin:Reds"}}
    search(write_package(tmp_path / "site", points, {"reds_plugin.py": PLUGIN}, name="reds"), monkeypatch)


def write(folder: Path) -> Path:
    writer = Writer(folder)
    for name in ("a.png", "b.png"):
        picture = Image.effect_noise((200, 100), 60).convert("RGB")
        if name == "b.png":
            picture.paste((255, 0, 0), (30, 40, 80, 90))
        picture.save(folder / name)
        writer.add({"image": name, "question": f"What is in {name}?", "answer": "noise"})
    return writer.write("data.jsonl")


@pytest.mark.usefixtures("installed")
def test_an_installed_plugin_is_asked_and_its_regions_are_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    done = run(path, "--redactor", "reds", "--json")
    [finding] = [finding for finding in json.loads(done.stdout)["findings"] if finding["rule"] == "private"]
    assert finding["source"] == f"{path}:2" and finding["boxes"] == [[30, 40, 80, 90]]
    assert "reds found 1 of red in b.png" in finding["message"]
    done = run(path, "--redactor", "reds", "--fix", "private", "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert len((tmp_path / "out" / "data.jsonl").read_text().splitlines()) == 1


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_is_found_is_covered_in_copies(tmp_path: Path, dry: list[str]) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    with path.open("a") as file:  # the red region is what this one is about
        file.write(json.dumps({"image": "b.png", "text": "the red thing", "bbox": [28, 38, 82, 92]}) + "\n")
    done = run(path, "--redactor", "reds", "--fix", "cover", "--output", out, "--json", *dry)
    assert done.exit_code == 0, done.stderr
    assert not [finding for finding in json.loads(done.stdout)["after"]["findings"] if finding["rule"] == "private"]
    if dry:
        assert not out.exists()
        return
    records = [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]
    assert records[0]["image"] == "../a.png"
    assert records[1]["image"] == records[2]["image"] and records[2]["bbox"] == [28, 38, 82, 92]
    before, after = (np.asarray(Image.open(file)) for file in (tmp_path / "b.png", out / records[1]["image"]))
    changed = (before != after).any(axis=-1)
    assert not changed[:35].any() and not changed[95:].any() and not changed[:, :25].any() and not changed[:, 85:].any()
    assert len(np.unique(after[35:95, 25:85].reshape(-1, 3), axis=0)) == 1  # one colour, a tenth around the region
    changes = [json.loads(line) for line in (out / "changes.jsonl").read_text().splitlines()]
    assert [change["fix"] for change in changes] == ["cover", "cover"]
    assert changes[1]["reason"] == "1 of red in b.png; 100% of [28, 38, 82, 92] is hidden now"
    described = json.loads((out / "dataset.json").read_text())
    assert records[1]["image"] in json.dumps(described) and "../b.png" not in json.dumps(described)
    assert "private" not in run(out / "data.jsonl", "--redactor", "reds").stdout


@pytest.mark.usefixtures("installed")
def test_a_missing_picture_stays_told_beside_covered_ones(tmp_path: Path) -> None:
    path = write(tmp_path)
    with path.open("a") as file:
        file.write(json.dumps({"image": "gone.png", "question": "What is it?", "answer": "gone"}) + "\n")
    done = run(path, "--redactor", "reds", "--fix", "cover", "--output", tmp_path / "out", "--json")
    assert done.exit_code == 1
    assert [finding["rule"] for finding in json.loads(done.stdout)["after"]["findings"]] == ["picture"]
    names = [json.loads(line)["image"] for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert names[0] == "../a.png" and names[1].startswith("images/b-") and names[2] == "../gone.png"


def test_covering_wants_a_redactor_and_no_dropping(tmp_path: Path) -> None:
    path = write(tmp_path)
    done = run(path, "--fix", "cover", "--output", tmp_path / "out")
    assert done.exit_code == 2 and "--fix cover needs --redactor" in done.stderr
    done = run(path, "--redactor", "faces", "--fix", "cover,private", "--output", tmp_path / "out")
    assert done.exit_code == 2 and "name one of them" in done.stderr


def test_faces_are_found_and_landscapes_have_none(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra 'redact' is not installed")
    writer = Writer(tmp_path)
    face().resize((640, 640)).save(tmp_path / "face.png")
    for path in (tmp_path / "face.png", *photographs()):
        writer.add({"image": str(path), "question": f"Who is in {path.stem}?", "answer": "nobody"})
    done = run(writer.write("data.jsonl"), "--redactor", "faces", "--json")
    [finding] = [finding for finding in json.loads(done.stdout)["findings"] if finding["rule"] == "private"]
    [[x1, y1, x2, y2]] = finding["boxes"]
    assert finding["image"].endswith("face.png")
    assert x1 < 260 < 380 < x2 and y1 < 290 < 440 < y2  # eyes and mouth, as drawn


def test_writing_is_found_and_what_it_says_is_not_told(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="the extra 'redact' is not installed")
    writer = Writer(tmp_path)
    picture = photographs()[0]
    sign = Image.open(picture).convert("RGB").resize((640, 480))
    font = ImageFont.load_default(size=36)
    ImageDraw.Draw(sign).text((200, 100), "KX 482 BD", fill="black", font=font, stroke_width=4, stroke_fill="white")
    sign.save(tmp_path / "sign.png")
    for path in (tmp_path / "sign.png", *photographs()):
        writer.add({"image": str(path), "question": f"What is in {path.stem}?", "answer": "nothing"})
    done = run(writer.write("data.jsonl"), "--redactor", "text", "--json")
    [finding] = [finding for finding in json.loads(done.stdout)["findings"] if finding["rule"] == "private"]
    [[x1, y1, x2, y2]] = finding["boxes"]
    left, top, right, bottom = font.getbbox("KX 482 BD")
    inside = (200 + left, 100 + top, 200 + right, 100 + bottom)
    np.testing.assert_allclose((x1, y1, x2, y2), inside, atol=16)
    assert finding["image"].endswith("sign.png")
    assert "482" not in done.stdout + done.stderr


@pytest.mark.parametrize(("module", "redactor"), [("cv2", "faces"), ("rapidocr", "text")])
def test_without_its_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, redactor: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = run(write(tmp_path), "--redactor", redactor)
    assert done.exit_code == 3 and re.search(r'hint: pip install .*\[redact\]"', done.stderr)


def test_a_mistyped_redactor_is_told(tmp_path: Path) -> None:
    done = run(write(tmp_path), "--redactor", "face")
    assert done.exit_code == 2 and "did you mean 'faces'?" in done.stderr
