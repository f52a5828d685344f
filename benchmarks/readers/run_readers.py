"""Which engines read our bundles, and whether they answer as the dequantized model does: `make test-readers`.

    python run_readers.py --work W --environments E [--families NAME,NAME] [--readers NAME,NAME] [--formats NAME,NAME]

Makes bundles of two families and several weight sets, has every engine answer 24 records from them, and compares its
answers with those of transformers with the dequantized weights. What an engine reads has to be what `edgetune export`
says of it. Prints a table; exits with 1 where an answer or a claim is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reader_environments
import reader_material as material
from reader_material import FAMILIES, SETS

HERE = Path(__file__).resolve().parent
TIE = 0.03
"""Answers may part where the reference's two largest logits are closer than this: other kernels round otherwise."""


@dataclass(frozen=True)
class Reader:
    """How an engine is asked.

    Attributes:
        title: its name in the manifest's "readers".
        script: that asks it.
        environment: where it is installed; None is ours.
        dtype: that it computes in.
        formats: of the bundles that it is tried on.
        pictures: whether it is asked about pictures.
        refuses: families whose ONNX graphs it is known not to run; of checkpoints the manifest tells.
    """

    title: str
    script: str
    environment: str | None
    dtype: str
    formats: tuple[str, ...]
    pictures: bool = True
    refuses: tuple[str, ...] = ()


CHECKPOINTS = ("gptq", "awq", "compressed-tensors")
READERS = {
    "vllm": Reader("vLLM", "read_vllm.py", "vllm", "float16", CHECKPOINTS),
    "transformers": Reader("transformers", "read_transformers.py", "gptqmodel", "float32", CHECKPOINTS),
    "gptqmodel": Reader("GPTQModel", "read_gptqmodel.py", "gptqmodel", "float32", ("gptq", "awq")),
    "genai": Reader("onnxruntime-genai", "read_genai.py", None, "float32", ("onnx",), pictures=False),
    "transformers.js": Reader(
        "transformers.js", "read_transformers_js.mjs", "node", "float32", ("onnx",), refuses=("qwen3_vl",)
    ),
}


def main() -> None:
    """Ask every engine for every bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--formats", default=",".join((*CHECKPOINTS, "onnx")))
    parser.add_argument("--sets", default=",".join(SETS), help="weight sets")
    options = parser.parse_args()
    work, formats, sets = options.work.absolute(), options.formats.split(","), options.sets.split(",")
    print("| family | format | weights | reader | dtype | expected | reference's answers | prompt lengths | |")
    print("|---|---|---|---|---|---|---|---|---|")
    wrong = 0
    for name in options.readers.split(","):
        reader = READERS[name]
        command = _command(reader, options.environments.absolute())
        for family in options.families.split(","):
            for format_, set_, bundle in _bundles(work, family, reader, formats, sets):
                row = _row(work, family, set_, bundle, reader, command)
                wrong += row[-1] != "ok"
                print(f"| {' | '.join([family, format_, set_, reader.title, reader.dtype, *row])} |", flush=True)
    sys.exit(wrong > 0)


def _command(reader: Reader, root: Path) -> list[str]:
    """What runs a job; the environment is made first."""
    script = HERE / reader.script
    if reader.environment is None:
        return [sys.executable, str(script)]
    if reader.environment == "node":
        place = reader_environments.node(root)
        copy = place / script.name  # a script finds packages beside it
        copy.write_bytes(script.read_bytes())
        return ["node", str(copy)]
    return [str(reader_environments.python(root, reader.environment)), str(script)]


def _bundles(
    work: Path, family: str, reader: Reader, formats: Sequence[str], sets: Sequence[str]
) -> Iterator[tuple[str, str, Path]]:
    """What a reader is tried on: the format, the weight set and the bundle."""
    for set_ in sets:
        for format_ in (name for name in reader.formats if name in formats):
            if format_ in ("awq", "onnx") and set_ == "g32 and g128":
                continue  # has no form in AWQ, and export refuses it; in onnx every product says its own bits
            if format_ in ("awq", "onnx") and set_ == "g32 symmetric":
                continue  # written as with zero points
            yield format_, set_, material.bundle(work, family, set_, format_)
            if reader.title == "GPTQModel" and family == "qwen2_5_vl":
                names = ("--names", "transformers")
                yield f"{format_}, {' '.join(names)}", set_, material.bundle(work, family, set_, format_, *names)


def _row(work: Path, family: str, set_: str, bundle: Path, reader: Reader, command: list[str]) -> list[str]:
    """What export says of the reader, how many answers are right, how many prompts are as long as ours, the verdict."""
    told = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["result"]["bundle"]
    read = family not in reader.refuses
    if "readers" in told:
        read = any(name.startswith(f"{reader.title} ") for name in told["readers"]["read"])
    claim = "read" if read else "refused"
    asked = material.job(work, family, pictures=reader.pictures)
    asked |= {"folder": str(bundle), "format": told["format"], "dtype": reader.dtype}
    expected = material.reference(work, family, set_, reader.dtype, asked)
    path = bundle.with_name(f"{bundle.name}.{reader.title}.json")
    path.write_text(json.dumps(asked), encoding="utf-8")
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    path.with_suffix(".log").write_text(done.stdout + done.stderr, encoding="utf-8")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"prompt_tokens"')]
    if done.returncode or len(lines) != len(expected):
        return [claim, f"does not load: {_reason(done.stderr)}", "", "WRONG" if read else "ok"]
    answers = [json.loads(line) for line in lines]
    same = [compare(one, found["tokens"]) for one, found in zip(expected, answers, strict=True)]
    exact, tied = same.count("same"), same.count("tie")
    lengths = sum(
        found["prompt_tokens"] == len(one["ids"]) for one, found in zip(asked["records"], answers, strict=True)
    )
    right = exact + tied == len(same) and lengths == len(same)
    count = f"{exact} of {len(same)}" + (f", {tied} part at a tie" if tied else "")
    return [claim, count, f"{lengths} of {len(same)}", "ok" if right == read else "WRONG"]


def compare(expected: dict[str, Any], tokens: list[int]) -> str:
    """How an answer relates to the reference's: "same", "tie" where they part at nearly equal logits, or "other".

    Args:
        expected: "tokens" of the reference, and at each the "gaps" of its two largest logits.
        tokens: the reader's.
    """
    if tokens == expected["tokens"]:
        return "same"
    pairs = zip(expected["tokens"], tokens, expected["gaps"], strict=False)
    gap = next((gap for ours, theirs, gap in pairs if ours != theirs), None)
    return "tie" if gap is not None and gap < TIE else "other"


def _reason(stderr: str) -> str:
    """The line of an error that says most."""
    lines = [line.strip() for line in stderr.splitlines() if "rror" in line] or stderr.strip().splitlines() or [""]
    told = [line for line in lines if "Unsupported" in line or "not support" in line]
    return (told or lines)[-1][:160].replace("|", "/")


if __name__ == "__main__":
    main()
