"""Which engines read our bundles, and whether they answer as the dequantized model does: `make test-readers`.

    python run_readers.py --work W --environments E [--families NAME,NAME] [--readers NAME,NAME] [--formats NAME,NAME]

Makes bundles of three families and several weight sets, has every engine answer 24 records from them, and compares its
answers with those of transformers with the dequantized weights. What an engine reads has to be what `edgetune export`
says of it. Prints the table of docs/peers.md; exits with 1 where an answer or a claim is wrong or an engine is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import reader_environments
import reader_material as material
from reader_environments import Unavailable
from reader_material import ASKED, MODELS, RECORDS, SETS, UNWRITTEN

from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family

HERE = Path(__file__).resolve().parent
TIES = {"float32": 0.05, "float16": 0.05, "bfloat16": 0.4}
"""Answers may part where the reference's two largest logits are closer than this: other kernels round otherwise. In
float16 a random Qwen2-VL, whose logits are below 8, parts at 0.035, alike in all formats; bfloat16 is eight times as
coarse."""
LIMIT_S = 900
"""Seconds that an engine has for a bundle; a tiny model takes a few."""
JOINED = "onnx, joined"


@dataclass(frozen=True)
class Reader:
    """How an engine is asked.

    Attributes:
        title: its name in the manifest's "readers".
        script: that asks it.
        environment: where it is installed; None is ours.
        dtype: that it computes in.
        formats: of the bundles that it is tried on.
        sets: names of the weight sets that it is tried on.
        refuses: families whose ONNX graphs it is known not to run as they are; of checkpoints the manifest tells.
        unknown: families whose graphs it does not run joined either: it lacks them, or gives their inputs other names.
        needs_gpu: weight sets that it reads on a GPU only, having no kernel for a CPU.
        other_lengths: how many prompts of a family its own processor is known to make of another length, at most.
        dtypes: of families that it computes in no other than these.
    """

    title: str
    script: str
    environment: str | None
    dtype: str
    formats: tuple[str, ...]
    sets: tuple[str, ...] = tuple(SETS)
    refuses: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    needs_gpu: tuple[str, ...] = ()
    other_lengths: Mapping[str, int] = field(default_factory=dict, hash=False)
    dtypes: Mapping[str, str] = field(default_factory=dict, hash=False)

    def dtype_of(self, family: Family) -> str:
        """In which a model of a family is asked."""
        return self.dtypes.get(family.name, self.dtype)


CHECKPOINTS = ("gptq", "awq", "compressed-tensors")
_ONNX: dict[str, Any] = {
    "dtype": "float32",
    "sets": tuple(SETS)[:1],
    # Half a patch is rounded up, where transformers rounds to even; LLaVA-1.5's pictures get one token too many.
    "other_lengths": {"qwen2_5_vl": 1, "qwen3_5": 1, "llava": RECORDS},
}
READERS = {
    "vllm": Reader(
        "vLLM",
        "read_vllm.py",
        "vllm",
        "float16",
        CHECKPOINTS,
        needs_gpu=("8 bits",),
        dtypes={"qwen3_5": "bfloat16"},
    ),
    "transformers": Reader("transformers", "read_transformers.py", "gptqmodel", "float32", CHECKPOINTS),
    "gptqmodel": Reader("GPTQModel", "read_gptqmodel.py", "gptqmodel", "float32", ("gptq", "awq")),
    "genai": Reader(
        "onnxruntime-genai",
        "read_genai.py",
        None,
        formats=(JOINED,),
        unknown=("qwen2_vl", "internvl", "internvl3_5", "llava", "llava_onevision", "smolvlm", "idefics3", "lfm2_vl"),
        **_ONNX,
    ),
    "transformers.js": Reader(
        "transformers.js",
        "read_transformers_js.mjs",
        "node",
        formats=("onnx", JOINED),
        refuses=("qwen3_vl", "qwen3_5", "llava", "smolvlm", "idefics3"),
        unknown=("qwen2_vl", "internvl", "internvl3_5", "llava_onevision", "lfm2_vl"),
        **_ONNX,
    ),
}


@dataclass
class Row:
    """A row of the table.

    Attributes:
        format: of the bundles, and how they were written.
        set: name of the weight set.
        asked: the job of each family, or why there is none.
    """

    format: str
    set: str
    asked: dict[str, Path | str]


@dataclass
class Told:
    """What an engine made of a job: why it stopped, which says nothing where all answers are there, and its answers."""

    error: str
    answers: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """A run, and what it came to.

    Attributes:
        work: folder of everything.
        families: that are tried.
        records: how many are asked.
        wrong: how many cells are not as they have to be.
        versions: of what the engines are made of.
        unwritten: formats and weight sets that export refuses, and why.
    """

    work: Path
    families: Sequence[str]
    records: int = RECORDS
    wrong: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    unwritten: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Ask every engine for every bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--families", default=",".join(ASKED), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--formats", default=",".join((*CHECKPOINTS, "onnx")))
    parser.add_argument("--sets", default=",".join(SETS), help="weight sets")
    parser.add_argument("--records", type=int, default=RECORDS, help=f"how many of the {RECORDS} to ask, evenly apart")
    options = parser.parse_args()
    run = Run(options.work.absolute(), options.families.split(","), options.records)
    formats, sets = options.formats.split(","), options.sets.split(",")
    print(f"| engine | dtype | format | weights | {' | '.join(run.families)} |")
    print("|---|---|---|---|" + "---|" * len(run.families), flush=True)
    for reader in (READERS[name] for name in options.readers.split(",")):
        try:
            command = _command(reader, options.environments.absolute())
        except Unavailable as error:
            run.wrong += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        rows = [
            row
            for set_ in reader.sets
            for format_ in reader.formats
            if set_ in sets and format_.split(",")[0] in formats
            for row in _rows(run, reader, format_, set_)
        ]
        jobs = [asked for row in rows for asked in row.asked.values() if isinstance(asked, Path)]
        print(f"{reader.title} is asked about {len(jobs)} bundles", file=sys.stderr, flush=True)
        told = ask(command, jobs, run)
        for row in rows:
            cells = [_cell(run, reader, row, family, told) for family in run.families]
            print(f"| {' | '.join([reader.title, reader.dtype, row.format, row.set, *cells])} |", flush=True)
    print("".join(f"\n{what} is not written: {why}" for what, why in run.unwritten.items()))
    print(", ".join(f"{name} {version}" for name, version in sorted(run.versions.items())))
    print(f"{_commit()}, Python {platform.python_version()}; {run.wrong} wrong")
    sys.exit(run.wrong > 0)


def _commit() -> str:
    asked = ("git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*")
    done = subprocess.run(asked, capture_output=True, text=True) if shutil.which("git") else None
    return f"commit {done.stdout.strip()}" if done is not None and done.returncode == 0 else "no commit"


def _command(reader: Reader, root: Path) -> list[str]:
    """What runs jobs; the environment is made first."""
    script = HERE / reader.script
    if reader.environment is None:
        return [sys.executable, str(script)]
    if reader.environment == "node":
        place = reader_environments.node(root)
        copy = place / script.name  # a script finds packages beside it
        copy.write_bytes(script.read_bytes())
        return ["node", str(copy)]
    return [str(reader_environments.python(root, reader.environment)), str(script)]


def _rows(run: Run, reader: Reader, format_: str, set_: str) -> Iterator[Row]:
    """A row for each kind of tensors' names that the engine is tried on; none where export refuses to write it."""
    other = [name for name in run.families if material.checkpoint(run.work, name).modules.hub_prefixes]  # names differ
    two = reader.title == "GPTQModel" and bool(other)
    for names in ("hub", "transformers") if two else ("hub",):
        row = Row(format_ if names == "hub" else f"{format_}, `--names {names}`", set_, {})
        for family in run.families:
            if names != "hub" and family not in other:
                row.asked[family] = "the same names"
                continue
            try:
                bundle = material.bundle(run.work, family, set_, format_.split(",")[0], names)
            except InputError as error:
                if (format_, set_) not in UNWRITTEN:
                    raise
                run.unwritten[f"{format_} of {set_}"] = row.asked[family] = str(error)
                continue
            if format_ == JOINED:
                bundle = material.joined(bundle)
            told = _manifest(bundle)
            dtype = reader.dtype_of(material.checkpoint(run.work, family).family)
            job = material.job(run.work, family, run.records) | {"format": told["format"], "dtype": dtype}
            path = bundle.with_name(f"{bundle.name}.{reader.title}.json")
            path.write_text(json.dumps(job | {"folder": str(bundle)}), encoding="utf-8")
            row.asked[family] = path
        if any(isinstance(asked, Path) for asked in row.asked.values()):
            yield row


def _manifest(bundle: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["result"]["bundle"]
    return told


def ask(command: Sequence[str], jobs: Sequence[Path], run: Run) -> dict[Path, Told]:
    """What an engine makes of jobs: one process is given all, and where it dies the next one those that are left."""
    told: dict[Path, Told] = {}
    while left := [job for job in jobs if job not in told]:
        log = left[0].with_suffix(".log")
        with log.open("w") as out, log.with_suffix(".errors").open("w") as err:
            try:
                done = subprocess.run(
                    [*command, *map(str, left)],
                    stdout=out,
                    stderr=err,
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                    timeout=LIMIT_S * len(left),
                )
                died = f"exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                died = f"no end after {LIMIT_S * len(left)} s"
        errors = log.with_suffix(".errors").read_text(encoding="utf-8", errors="replace")
        current = told.setdefault(left[0], Told(f"{died}: {_telling(errors)}"))
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith('{"versions"'):
                run.versions |= json.loads(line)["versions"]
            elif line.startswith('{"job"'):
                current = told[Path(json.loads(line)["job"])] = Told(f"{died}: {_telling(errors)}")
            elif line.startswith('{"prompt_tokens"'):
                current.answers.append(json.loads(line))
            elif line.startswith('{"error"'):
                current.error = _telling(json.loads(line)["error"])
    return told


def _cell(run: Run, reader: Reader, row: Row, family: str, told: Mapping[Path, Told]) -> str:
    """What came of a bundle in an engine; counts what is not as it has to be."""
    path = row.asked[family]
    if isinstance(path, str):
        return path
    asked = json.loads(path.read_text(encoding="utf-8"))
    readers = _manifest(Path(asked["folder"])).get("readers")
    read = family not in reader.unknown and (row.format == JOINED or family not in reader.refuses)
    if readers is not None:
        read = any(name.startswith(f"{reader.title} ") for name in readers["read"])
    expected = material.reference(run.work, family, row.set, asked["dtype"], asked)
    answers = told[path].answers
    if len(answers) != len(expected):
        right = not read or row.set in reader.needs_gpu
        how = "refused, as said" if not read else "not on a CPU" if right else "WRONG: refused"
        run.wrong += not right
        return f"{how}: `{told[path].error}`"
    tie = TIES[asked["dtype"]]
    same = [compare(one, given["tokens"], tie) for one, given in zip(expected, answers, strict=True)]
    lengths = [given["prompt_tokens"] == len(one["ids"]) for one, given in zip(asked["records"], answers, strict=True)]
    exact, tied, others = same.count("same"), same.count("tie"), lengths.count(False)
    cell = f"{exact} of {len(same)}" + (f", {tied} part at a tie" if tied else "")
    cell += f"; {others} prompt{'s' * (others > 1)} of another length" if others else ""
    cell += f"; in {asked['dtype']}" if asked["dtype"] != reader.dtype else ""
    right = (exact + tied == len(same) and others <= reader.other_lengths.get(family, 0)) == read
    run.wrong += not right
    return (cell if read else f"{cell}, as said") if right else f"WRONG: {cell}"


def compare(expected: dict[str, Any], tokens: list[int], tie: float) -> str:
    """How an answer relates to the reference's: "same", "tie" where they part at nearly equal logits, or "other".

    Args:
        expected: "tokens" of the reference, and at each the "gaps" of its two largest logits.
        tokens: the reader's.
        tie: gap below which an answer may part.
    """
    if tokens == expected["tokens"]:
        return "same"
    pairs = zip(expected["tokens"], tokens, expected["gaps"], strict=False)
    gap = next((gap for ours, theirs, gap in pairs if ours != theirs), None)
    return "tie" if gap is not None and gap < tie else "other"


def _telling(text: str) -> str:
    """The line of an error that says most."""
    lines = text.strip().splitlines() or [""]
    refusing = [line for line in lines if "nsupported" in line or "not support" in line]
    failing = [line for line in lines if "rror" in line]
    said = (refusing or failing or lines)[-1].strip().partition(" [type=")[0]  # what pydantic adds
    return said[:200].replace("|", "/").replace("`", "'")


if __name__ == "__main__":
    main()
