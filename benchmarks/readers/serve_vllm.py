"""`edgetune serve --engine vllm` before a real `vllm serve`: 24 records over HTTP, through our server and vLLM's own.

    make test-vllm

makes vLLM's environment, calibrates the tiny example model, exports it for servers, and has each checkpoint served. The
reference is the dequantized model: a bundle of the same weight set whose activations, picture and head are not rounded,
which export's self-check compared with transformers. Our own int4 runtime rounds activations, vLLM does not.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reader_environments import python

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "examples" / "tiny" / "model"
FORMATS = ("gptq", "awq", "compressed-tensors")
COUNT = 24
ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
WORDS = "--dtype float16 --enforce-eager --skip-mm-profiling"


def edgetune(*words: object) -> None:
    """Run a verb.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], check=False, stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"error: edgetune {words[0]} left with {done.returncode}")


def prepare(work: Path) -> list[dict[str, Any]]:
    """Write records, a weight set, the checkpoints and the reference; return records with a phrase."""
    data, weights = work / "scenes", work / "set"
    if not data.is_dir():
        script = MODEL.parent / "make_data.py"
        words = ["--output", str(data), "--train", "40", "--test", str(2 * COUNT)]
        subprocess.run([sys.executable, str(script), *words], check=True)
    common = ("--checkpoint", MODEL)
    solving = ("--symmetric", "--group-size", 128, "--head", 16, "--output", weights)
    edgetune("calibrate", *common, "--data", data / "train.jsonl", *solving)
    for format_ in FORMATS:
        edgetune(
            "export", *common, "--weights", weights, "--format", format_, "--for", "server", "--output", work / format_
        )
    exact = ("--accuracy-level", 0, "--vision-precision", "fp32", "--head-precision", "fp32")
    edgetune("export", *common, "--weights", weights, *exact, "--output", work / "reference")
    lines = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line | {"path": data / line["image"]} for line in lines if "text" in line][:COUNT]


def ask(port: int, path: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
    """The response to a request.

    Raises:
        SystemExit: it is refused.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    told: dict[str, Any] = json.loads(response.read())
    if response.status != 200:
        sys.exit(f"error: {path} is answered with {response.status}: {told}")
    return told


def compare(folder: Path, records: list[dict[str, Any]], expected: list[Any], program: Path) -> dict[str, Any]:
    """Serve a checkpoint and ask about the records through both doors."""
    command = [sys.executable, "-m", "edgetune", "serve", f"it={folder}", "--engine", "vllm", "--port", "0"]
    variables = os.environ | ON_A_CPU | {"EDGETUNE_VLLM": str(program)}
    began, row = time.perf_counter(), {"boxes": 0, "scores": 0.0, "text": 0, "prompts": 0}
    seconds: list[float] = []
    with subprocess.Popen(
        [*command, "--engine-args", WORDS], stdout=subprocess.PIPE, text=True, env=variables
    ) as process:
        assert process.stdout is not None
        found = re.search(r"http://[^ ]*:(\d+)", process.stdout.readline())
        if found is None:
            return row | {"refused": True}
        up = time.perf_counter() - began
        port = int(found[1])
        engine, key = engine_of(process.pid)
        try:
            for record, answer in zip(records, expected, strict=True):
                image = base64.b64encode(record["path"].read_bytes()).decode()
                before = time.perf_counter()
                told = ask(port, "/v1/detect", {"image": image, "phrase": record["text"]})
                seconds.append(time.perf_counter() - before)
                boxes = [(item["box"], item["label"]) for item in told["detections"]]
                row["boxes"] += boxes == [(list(item.box), item.label) for item in answer.detections]
                gaps = [
                    abs(item["score"] - theirs.score)
                    for item, theirs in zip(told["detections"], answer.detections, strict=False)
                ]
                row["scores"] = max(row["scores"], *gaps, 0.0)
                url = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}}
                content = [url, {"type": "text", "text": record["words"]}]
                direct = {"model": "it", "temperature": 0, "messages": [{"role": "user", "content": content}]}
                own = ask(engine, "/v1/chat/completions", direct, key)
                row["text"] += own["choices"][0]["message"]["content"] == answer.text
                row["prompts"] += own["usage"]["prompt_tokens"] == answer.prompt_tokens
        finally:
            process.terminate()
    return row | {"up_s": up, "p50_ms": 1000 * statistics.median(seconds), "records": len(records)}


def engine_of(parent: int) -> tuple[int, str]:
    """The port of the `vllm serve` that a process started, and the key that it asks for."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (entry / "cmdline").exists():
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent and "--served-model-name" in words:
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                key = next(each for each in variables if each.startswith("VLLM_API_KEY="))
                return int(words[words.index("--port") + 1]), key.partition("=")[2]
    sys.exit("error: vllm serve is not running")


def main() -> None:
    """Serve every checkpoint and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles")
    parser.add_argument("--environments", type=Path, required=True, help="folder for vLLM's environment")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    program = python(options.environments.resolve(), "vllm").with_name("vllm")
    records = prepare(options.work)
    from edgetune_runtime import Session

    with Session.load(options.work / "reference") as session:
        for record in records:
            record["words"] = session.request(record["text"])
        expected = [session.answer(record["path"], record["words"], constrained=False) for record in records]
    columns = ("format", "boxes through our server", "largest gap of a score", "text by vLLM's own API")
    print(f"| {' | '.join((*columns, 'prompts of our length', 'up after, s', 'answer, ms (median)'))} |")
    print("|---|---|---|---|---|---|---|", flush=True)
    wrong = 0
    for format_ in FORMATS:
        row = compare(options.work / format_, records, expected, program)
        if "refused" in row:
            sys.exit(f"error: {format_} was not served, see above")
        of = f"of {row['records']}"
        counts = f"{row['boxes']} {of} | {row['scores']:.4f} | {row['text']} {of} | {row['prompts']} {of}"
        print(f"| {format_} | {counts} | {row['up_s']:.0f} | {row['p50_ms']:.0f} |", flush=True)
        wrong += sum(row["records"] - row[name] for name in ("boxes", "text", "prompts"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
