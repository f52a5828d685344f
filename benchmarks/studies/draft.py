"""What decoding large JPEG files smaller saves, and what it costs in boxes.

    python benchmarks/studies/draft.py --bundle BUNDLE --data RECORDS [--times 4] [--records 100] [--threads 1]

Pictures of records with boxes are enlarged and written as JPEG files in memory, quality 90; each is asked about in
turns with the file decoded whole and with `Session.load(draft=True)`. Times are the processor's, of the thread that
loads and preprocesses, which other programs disturb least. Enlarged pictures have no detail of their own.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.images.load import load_image
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.records import Record, read_records
from edgetune_runtime.session import Session


def enlarged(record: Record, times: int) -> bytes:
    """A record's picture as a JPEG file."""
    image, file = load_image(record.image), io.BytesIO()
    size = (image.width * times, image.height * times)
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sessions = {
        name: Session.load(options.bundle, threads=options.threads, draft=name == "draft")
        for name in ("whole", "draft")
    }
    spec = sessions["whole"].bundle.spec
    assert isinstance(spec, ImageSpec)
    records = [record for record in read_records(options.data) if record.boxes is not None and len(record.boxes)]
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    overlaps: dict[str, list[float]] = {name: [] for name in sessions}
    between: list[float] = []
    areas: list[float] = []
    for record in records[: options.records]:
        file, found = enlarged(record, options.times), {}
        for name, session in sessions.items():
            began = time.thread_time()
            if name == "draft":
                image, own = spec.draft(file)
            else:
                image = load_image(file)
                own = image.size
            spec.arrays(image, raw=True)
            seconds[name].append((time.thread_time() - began) / (own[0] * own[1] / 1e6))
            answer = session.answer(file, record.prompt(session.bundle))
            found[name] = np.array([one.box for one in answer.detections]).reshape(-1, 4)
            overlaps[name].append(float(sample_iou(found[name], np.array(record.boxes) * options.times)))
        areas.append(own[0] * own[1] / 1e6)
        between.append(float(sample_iou(found["draft"], found["whole"])) if len(found["whole"]) else 1.0)
    told = {
        "records": len(between),
        "megapixels": round(statistics.median(areas), 2),
        "CPU ms a megapixel": {name: round(1e3 * statistics.median(each), 2) for name, each in seconds.items()},
        "ratio": round(statistics.median(a / b for a, b in zip(seconds["draft"], seconds["whole"], strict=True)), 3),
        "mIoU": {name: round(statistics.fmean(each), 4) for name, each in overlaps.items()},
        "Acc@0.5": {name: round(float(np.mean(np.array(each) >= 0.5)), 4) for name, each in overlaps.items()},
        "Acc@0.75": {name: round(float(np.mean(np.array(each) >= 0.75)), 4) for name, each in overlaps.items()},
        "IoU of both": round(statistics.fmean(between), 4),
        "same boxes": round(float(np.mean(np.array(between) == 1)), 4),
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
