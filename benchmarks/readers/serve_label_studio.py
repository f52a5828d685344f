"""`edgetune serve` as the ML backend of a real Label Studio: boxes into the tool, and annotations out of it.

    make test-label-studio

makes Label Studio's environment, exports the tiny example model, and starts both: Label Studio with SQLite in a fresh
folder, our server with an API key. All goes through Label Studio's own API. A project gets pictures as uploads and as a
local file, one of them with an EXIF orientation; its predictions are compared with `Session.ground` on the same files,
and an annotation that came from one returns through `edgetune data convert`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from label_studio_client import Client, LabelStudioError
from PIL import Image
from reader_environments import python

from edgetune_runtime import Session
from edgetune_runtime.serve.label_studio_files import LabelStudioFiles

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"
COUNT = 12
KEY = "a key of the job"
LOCAL = "tür and shelf.jpg"
"""Name of the picture that stays a local file."""
TURNED = 3
"""Which picture is stored on its side, with an EXIF orientation that turns it upright."""


def prepare(work: Path) -> list[tuple[Path, str]]:
    """Write a bundle and pictures; return a picture and a phrase of each record."""
    bundle, data, pictures = work / "bundle", work / "scenes", work / "pictures"
    if not (bundle / "manifest.json").is_file():
        words = ["export", "--checkpoint", str(MODEL), "--output", str(bundle)]
        subprocess.run([sys.executable, "-m", "edgetune", *words], check=True, stdout=sys.stderr)
    if not data.is_dir():
        words = ["--output", str(data), "--test", str(2 * COUNT)]
        subprocess.run([sys.executable, str(MODEL.parent / "make_data.py"), *words], check=True)
    lines = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [(data / line["image"], line["text"]) for line in lines if "text" in line][:COUNT]
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    for number, (path, _) in enumerate(records):
        shutil.copy(path, pictures / (LOCAL if number == COUNT - 1 else path.name))
    turned = pictures / records[TURNED][0].name
    exif = Image.Exif()
    exif[0x0112] = 6  # whoever shows it turns it by 90 degrees clockwise
    with Image.open(records[TURNED][0]) as upright:
        assert upright.width != upright.height
        upright.transpose(Image.Transpose.ROTATE_90).save(turned, quality=95, exif=exif)
    names = [LOCAL if number == COUNT - 1 else path.name for number, (path, _) in enumerate(records)]
    return [(pictures / name, phrase) for name, (_, phrase) in zip(names, records, strict=True)]


@contextmanager
def label_studio(program: Path, work: Path) -> Iterator[Client]:
    """A Label Studio with one user, and a client of it."""
    folder, port = work / "server", free_port()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(work),
        "ML_BLOCK_LOCAL_IP": "false",  # it asks no ML backend of a private address, and sends it no events, unless told
        "SSRF_PROTECTION_ENABLED": "false",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    user, password = "someone@example.org", "no secret at all"
    words = ["start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1", "--data-dir", str(folder)]
    command = [str(program), *words, "--username", user, "--password", password]
    with (work / "label_studio.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    try:
        client = Client(f"http://127.0.0.1:{port}")
        client.sign_in(user, password, seconds=180)
        yield client
    finally:
        process.terminate()
        process.wait()


@contextmanager
def our_server(bundle: Path, log: Path, *more: str, token: str = "") -> Iterator[int]:
    """`edgetune serve` before a bundle, and its port."""
    words = ["serve", f"tiny={bundle}", "--port", "0", "--threads", "1", *more]
    variables = os.environ | {"EDGETUNE_API_KEY": KEY, "LABEL_STUDIO_API_KEY": token}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "edgetune", *words], env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        found = re.search(r"http://[^ ]*:(\d+)", process.stdout.readline())
        try:
            if found is None:
                sys.exit(f"error: edgetune serve did not start: {log.read_text()}")
            yield int(found[1])
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def config(phrases: list[str]) -> str:
    """A labelling config: labels are short, and hints are what the model is asked."""
    labels = "".join(
        f"<Label value={quoteattr(phrase.removeprefix('the '))} hint={quoteattr(phrase)}/>" for phrase in phrases
    )
    return (
        '<View><TextArea name="prompt" toName="photo" showSubmitButton="true" maxSubmissions="1" editable="true"/>'
        '<Image name="photo" value="$image"/>'
        f'<RectangleLabels name="box" toName="photo">{labels}</RectangleLabels></View>'
    )


def pixels(region: dict[str, Any]) -> list[float]:
    """A region's box in pixels of the upright picture."""
    value, width, height = region["value"], region["original_width"], region["original_height"]
    x1, y1 = value["x"] * width / 100, value["y"] * height / 100
    return [x1, y1, x1 + value["width"] * width / 100, y1 + value["height"] * height / 100]


def gap(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest difference of two lists of boxes, in pixels; infinite where their numbers differ."""
    if len(one) != len(other):
        return float("inf")
    return max((abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)), default=0.0)


class Job:
    """What is checked; each check says what it saw."""

    def __init__(self, client: Client, work: Path, records: list[tuple[Path, str]]) -> None:
        self.client, self.work, self.records = client, work, records
        self.phrases = [phrase for _, phrase in records]
        self.wrong = 0
        with Session.load(work / "bundle", threads=1) as session:
            self.expected = {
                path.name: [
                    (label.removeprefix("the "), found)
                    for label, detections in zip(self.phrases, session.ground(path, self.phrases), strict=True)
                    for found in detections
                ]
                for path, _ in records
            }

    def check(self, what: str, saw: object, *, right: bool) -> None:
        """Print a line, and remember whether it was right."""
        self.wrong += not right
        print(f"{'ok   ' if right else 'WRONG'} {what}: {saw}", flush=True)

    def run(self) -> None:
        """All checks."""
        token = self.client.personal_token()
        project = self.client.ask(
            "POST", "/api/projects", {"title": "tiny scenes", "label_config": config(self.phrases)}
        )
        number = project["id"]
        self.import_pictures(number)
        words = ("--label-studio", self.client.url)
        with our_server(self.work / "bundle", self.work / "edgetune.log", *words, token=token) as port:
            backend = self.connect(number, port)
            self.predict(number)
            self.order(number)
            self.prompt(number, backend)
            self.annotate(number, backend, port)
        self.convert(number)
        self.legacy_token(number)

    def import_pictures(self, project: int) -> None:
        """Upload all pictures but one, which a local storage gives."""
        *uploads, local = [path for path, _ in self.records]
        for path in uploads:
            self.client.upload(f"/api/projects/{project}/import?commit_to_project=true", path)
        folder = str(local.parent)
        storage = {"project": project, "path": folder, "title": "local", "use_blob_urls": True, "regex_filter": "x^"}
        self.client.ask("POST", "/api/storages/localfiles", storage)
        where = quote(f"{local.parent.name}/{local.name}")
        task = {"data": {"image": f"/data/local-files/?d={where}"}}
        self.client.ask("POST", f"/api/projects/{project}/import", [task])

    def connect(self, project: int, port: int) -> int:
        """Add our server as ML backend, by basic authentication."""
        backend = {"url": f"http://127.0.0.1:{port}", "project": project, "title": "edgetune", "is_interactive": True}
        access = {"auth_method": "BASIC_AUTH", "basic_auth_user": "label-studio"}
        try:
            self.client.ask("POST", "/api/ml", backend | access | {"basic_auth_pass": "wrong"})
            refused = "taken"
        except LabelStudioError as error:
            refused = str(error)
        self.check("a wrong key", re.findall(r"40\d [A-Z]\w+ \w+", refused)[:1] or refused, right="401" in refused)
        added = self.client.ask("POST", "/api/ml", backend | access | {"basic_auth_pass": KEY})
        state = (added["readable_state"], added["model_version"])
        added = self.client.ask("GET", f"/api/ml/{added['id']}")
        state = (added["readable_state"], added["model_version"])
        self.check("the ML backend", state, right=state[0] == "Connected" and str(state[1]).startswith("tiny-"))
        self.version = added["model_version"]
        return int(added["id"])

    def tasks(self, project: int, query: str = "") -> list[dict[str, Any]]:
        """The project's tasks with their predictions."""
        path = f"/api/tasks?project={project}&fields=all&page_size=100{query}"
        found: list[dict[str, Any]] = self.client.ask("GET", path)["tasks"]
        return found

    def name(self, task: dict[str, Any]) -> str:
        """The file of a task's picture."""
        reference = task["data"]["image"]
        names = [path.name for path, _ in self.records]
        return next(name for name in names if reference.endswith((f"-{name}", quote(name))))

    def predict(self, project: int) -> None:
        """Ask for predictions of all tasks, as "Retrieve predictions" of the Data Manager does."""
        began = time.perf_counter()
        everything = {"selectedItems": {"all": True, "excluded": []}, "filters": {"conjunction": "and", "items": []}}
        self.client.ask("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", everything)
        seconds = time.perf_counter() - began
        tasks = self.tasks(project)
        self.predictions = {task["id"]: task["predictions"] for task in tasks}
        gaps, scores, boxes, labels = [], 0, 0, 0
        for task in tasks:
            (prediction,) = task["predictions"]
            expected = self.expected[self.name(task)]
            regions = prediction["result"]
            gaps.append(gap([pixels(each) for each in regions], [list(found.box) for _, found in expected]))
            boxes += len(regions)
            labels += [each["value"]["rectanglelabels"] for each in regions] == [[label] for label, _ in expected]
            told = [found.score for _, found in expected]
            sure = [score for score in told if score is not None]
            scores += [each["score"] for each in regions] == told and prediction["score"] == min(sure, default=None)
        of = f"of {len(tasks)} tasks"
        self.check("tasks with a prediction", f"{len(tasks)} of {COUNT}, in {seconds:.1f} s", right=len(tasks) == COUNT)
        far = f"{boxes} boxes, at most {max(gaps):.1e} pixels from Session.ground"
        self.check("boxes", far, right=boxes >= COUNT // 2 and max(gaps) < 1e-6)
        self.check("labels", f"{labels} {of}", right=labels == len(tasks))
        self.check("scores", f"{scores} {of}", right=scores == len(tasks))
        turned = next(task for task in tasks if self.name(task) == self.records[TURNED][0].name)
        with Image.open(self.records[TURNED][0]) as stored:
            upright = (stored.height, stored.width)
        size = {(each["original_width"], each["original_height"]) for each in turned["predictions"][0]["result"]}
        self.check("the picture with an EXIF orientation", f"upright {size}", right=size == {upright})

    def order(self, project: int) -> None:
        """The Data Manager's order by prediction score, of the version that the project's settings name."""
        self.client.ask("PATCH", f"/api/projects/{project}", {"model_version": self.version})
        data = {"ordering": ["tasks:predictions_score"], "title": "uncertain first"}
        view = self.client.ask("POST", "/api/dm/views", {"project": project, "data": data})
        tasks = self.tasks(project, f"&view={view['id']}")
        scores = [task["predictions_score"] for task in tasks]
        known = [score for score in scores if score is not None]
        right = scores == sorted(known) + [None] * (len(scores) - len(known)) and len(set(known)) > 3
        right = right and scores == [task["predictions"][0]["score"] for task in tasks]
        told = ", ".join("none" if score is None else f"{score:.3f}" for score in scores)
        self.check("uncertain first", told, right=right)

    def prompt(self, project: int, backend: int) -> None:
        """What an annotator writes into the text area, for one open task."""
        task = next(task for task in self.tasks(project) if self.expected[self.name(task)])
        phrase = self.records[[path.name for path, _ in self.records].index(self.name(task))][1]
        item = {"from_name": "prompt", "to_name": "photo", "type": "textarea", "value": {"text": [phrase]}}
        path = f"/api/ml/{backend}/interactive-annotating"
        told = self.client.ask("POST", path, {"task": task["id"], "context": {"result": [item]}})
        boxes = [pixels(each) for each in told["data"]["result"]]
        label = phrase.removeprefix("the ")
        expected = [list(found.box) for name, found in self.expected[self.name(task)] if name == label]
        right = bool(boxes) and gap(boxes, expected) < 1e-6
        self.check("a prompt in the labelling page", f"{phrase!r} gives {len(boxes)} box(es)", right=right)
        told = self.client.ask("POST", path, {"task": task["id"], "context": {"result": [item | {"type": "choices"}]}})
        self.check("a prompt without a text", told.get("errors"), right=bool(told.get("errors")))

    def annotate(self, project: int, backend: int, port: int) -> None:
        """Submit predictions as annotations, one of them corrected; events arrive once the webhook has the key."""
        tasks = [task for task in self.tasks(project) if task["predictions"][0]["result"]]
        self.submitted: dict[str, list[list[float]]] = {}
        self.submit(tasks[0], "prediction")
        events = self.figures(port, "edgetune_label_studio_events_total")
        self.check("events without the key", events or "none are taken", right=not events)
        (hook,) = self.client.ask("GET", f"/api/webhooks/?project={project}")
        headers = {"headers": {"Authorization": f"Bearer {KEY}"}}
        self.client.ask("PATCH", f"/api/webhooks/{hook['id']}/?project={project}", headers)
        for task in tasks[1:3]:
            self.submit(task, "prediction")
        self.submit(tasks[3], "prediction-changed", moved=1.5)
        self.client.ask("POST", f"/api/ml/{backend}/train", {})
        events = self.figures(port, "edgetune_label_studio_events_total")
        right = events.get("ANNOTATION_CREATED") == 3 and events.get("START_TRAINING") == 1
        self.check("events", events, right=right)
        regions = self.figures(port, "edgetune_label_studio_regions_total")
        kept = sum(len(task["predictions"][0]["result"]) for task in tasks[1:3])
        changed = len(tasks[3]["predictions"][0]["result"])
        right = regions == {"prediction": kept, "prediction-changed": changed}
        self.check("boxes kept and corrected", regions, right=right)

    def submit(self, task: dict[str, Any], origin: str, moved: float = 0.0) -> None:
        """An annotation of a prediction's regions, moved to the right by some percent."""
        regions = [
            {**each, "origin": origin, "value": {**each["value"], "x": each["value"]["x"] + moved}}
            for each in task["predictions"][0]["result"]
        ]
        self.client.ask("POST", f"/api/tasks/{task['id']}/annotations/", {"result": regions})
        self.submitted[self.name(task)] = [pixels(each) for each in regions]

    def figures(self, port: int, name: str) -> dict[str, int]:
        """A figure of ours by its label."""
        text = Client(f"http://127.0.0.1:{port}").text("/metrics", {"x-api-key": KEY})
        found = re.findall(rf'^{name}{{\w+="([^"]*)"}} ([\d.]+)', text, re.MULTILINE)
        return {label: int(float(value)) for label, value in found}

    def convert(self, project: int) -> None:
        """The export through `edgetune data convert`."""
        export, root = self.work / "export.json", self.work / "media"
        export.write_text(self.client.text(f"/api/projects/{project}/export?exportType=JSON"), encoding="utf-8")
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.work / "server" / "media" / "upload", root)
        shutil.rmtree(self.work / "converted", ignore_errors=True)
        words = ["data", "convert", str(export), "--image-root", str(root), "--output", str(self.work / "converted")]
        done = subprocess.run([sys.executable, "-m", "edgetune", *words], check=False, capture_output=True, text=True)
        print(done.stdout.strip() or done.stderr.strip(), flush=True)
        boxes: dict[str, list[list[float]]] = {name: [] for name in self.submitted}
        for line in (self.work / "converted" / "data.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            one = record["bbox"] if isinstance(record["bbox"][0], list) else [record["bbox"]]
            boxes[next(name for name in boxes if record["image"].endswith(f"-{name}"))] += one
        gaps = [gap(sorted(boxes[name]), sorted(self.submitted[name])) for name in boxes]
        told = f"{sum(map(len, boxes.values()))} boxes of {len(boxes)} tasks, at most {max(gaps):.3f} pixels away"
        self.check("annotations through edgetune data convert", told, right=max(gaps) <= 0.051)

    def legacy_token(self, project: int) -> None:
        """Legacy tokens are switched off in a new Label Studio, and work once they are on."""
        task = self.tasks(project)[0]
        token = self.client.legacy_token()
        content = io.BytesIO(LabelStudioFiles(self.client.url, token, 1 << 24).content(task["data"]["image"], "image"))
        with Image.open(content) as image:
            self.check("a legacy token", image.size, right=min(image.size) > 0)


def main() -> None:
    """Start both and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundle and Label Studio's data")
    parser.add_argument("--environments", type=Path, required=True, help="folder for Label Studio's environment")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    program = python(options.environments.resolve(), "label_studio").with_name("label-studio")
    records = prepare(work)
    with label_studio(program, work) as client:
        job = Job(client, work, records)
        job.run()
    sys.exit(1 if job.wrong else 0)


if __name__ == "__main__":
    main()
