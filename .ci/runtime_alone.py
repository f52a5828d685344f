"""Check `edgetune-runtime` where only it is installed: `python runtime_alone.py BUNDLE FOLDER ABSENT...`.

Composes a picture with one object at a known place, asks the bundle for it, and compares. Prints what importing the
package loads, the detections and the installed size; fails if a package of the names ABSENT is there.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent / "examples" / "tiny" / "assets"
NEVER_IMPORTED = {"torch", "transformers", "onnx", "click", "huggingface_hub"}
CELL, COLUMNS = 112, 24  # of the sprite atlas
PLACE, SIDE = (150, 110), 320  # left top corner of the object and the picture's side, in pixels
OBJECT = "cactus"


def compose(path: Path) -> tuple[float, float, float, float]:
    """Write a picture of a photograph with the object on it, and return the object's box, xyxy in pixels."""
    objects = json.loads((ASSETS / "objects.json").read_text())
    index = next(i for i, entry in enumerate(objects) if entry["name"] == OBJECT)
    left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
    width, height = objects[index]["width"], objects[index]["height"]
    sprite = Image.open(ASSETS / "objects.webp").convert("RGBA").crop((left, top, left + width, top + height))
    picture = Image.open(sorted((ASSETS / "photos").glob("*.jpg"))[0]).convert("RGB").resize((SIDE, SIDE))
    picture.paste(sprite, PLACE, sprite)
    picture.save(path)
    return PLACE[0], PLACE[1], PLACE[0] + width, PLACE[1] + height


def installed_megabytes() -> float:
    """Return the size of everything in site-packages but pip and setuptools, which come with the environment."""
    site = Path(sysconfig.get_path("purelib"))
    folders = [path for path in site.iterdir() if not path.name.startswith(("pip", "setuptools", "pkg_resources"))]
    files = (path for folder in folders for path in (folder, *folder.rglob("*")) if path.is_file())
    return sum(path.stat().st_size for path in files) / 1e6


def main(bundle: str, folder: Path, absent: list[str]) -> None:
    """Run the checks."""
    present = [name for name in absent if importlib.util.find_spec(name)]
    assert not present, f"installed beside the runtime: {present}"

    before = set(sys.modules)
    import edgetune_runtime

    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    print(f"import edgetune_runtime loads: {', '.join(loaded)}")
    session = edgetune_runtime.Session.load(bundle)
    picture = folder / "scene.png"
    truth = compose(picture)
    detections = session.ground(picture, f"the {OBJECT}")
    print(f"the {OBJECT} is at {truth}; found: {detections}")
    assert len(detections) == 1, detections
    import numpy as np

    from edgetune_runtime.bench.metrics import iou

    overlap = float(iou(np.array([detections[0].box]), np.array([truth]))[0, 0])
    print(f"IoU {overlap:.3f}; {installed_megabytes():.0f} MB installed")
    assert overlap > 0.5, overlap

    program = Path(sys.executable).parent / "edgetune-run"
    told = subprocess.run([program, bundle, picture, f"the {OBJECT}", "--json"], capture_output=True, check=True)
    answer = json.loads(told.stdout)["results"][0]["detections"][0]
    assert tuple(answer["box"]) == detections[0].box, (answer, detections)
    assert 0 < answer["score"] <= 1, answer
    print(f"edgetune-run finds it as well: {answer}")

    box = [int(value) for value in truth]
    record = {"image": picture.name, "text": f"the {OBJECT}", "bbox": box}
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record | {"bbox": []}) + "\n")
    measured = folder / "measured.json"
    data = ("--data", folder / "records.jsonl", "--output", measured, "--force")
    subprocess.run([program, "bench", bundle, *data], check=True)
    (row,) = json.loads(measured.read_text())["rows"]
    assert row["ground"]["acc50"] == 1.0, row
    assert not NEVER_IMPORTED & set(sys.modules), NEVER_IMPORTED & set(sys.modules)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
