"""`edgetune demo`: the whole chain on the tiny example model, each stage through its own verb."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb
from edgetune_core.stage import run_stage
from edgetune_runtime.errors import InputError
from edgetune_runtime.signals import wait_for

_BUNDLES = {
    "fp32": ("--precision", "fp32"),
    "int8": ("--precision", "int8"),
    "int4": ("--format", "onnx"),
    "gptq": ("--format", "gptq"),
}
"""Folder of each bundle and what it is exported with; formats come from the weight set."""
_SHOWN = ("base", "tuned", "int4")  # the rows whose answers are drawn on the page
_PAGE = "index.html"


@verb(writes=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/demo"), help="Folder for all stages.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=Path("examples/tiny/model"),
    help="The base checkpoint; make_data.py lies beside it.",
)
@click.option("--train-scenes", type=click.IntRange(min=1), default=450, help="Scenes to train on.")
@click.option("--val-scenes", type=click.IntRange(min=1), default=10, help="Scenes scored after each epoch.")
@click.option("--test-scenes", type=click.IntRange(min=1), default=50, help="Scenes that every row is scored on.")
@click.option("--queries", type=click.IntRange(min=1), default=4, help="Records to a scene.")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Passes over the records.")
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), default=2e-3, help="Peak of its schedule."
)
@click.option("--vision-lora/--no-vision-lora", default=True, help="Adapt the vision tower as well.")
@click.option("--pictures", type=click.IntRange(min=1), default=16, help="Pictures on the page.")
@click.option("--seed", type=int, default=0, help="Seed of the scenes and of the training.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="CPU threads of the measured rows.")
def command(
    console: Console,
    output: Path,
    model: Path,
    train_scenes: int,
    val_scenes: int,
    test_scenes: int,
    queries: int,
    epochs: float,
    learning_rate: float,
    vision_lora: bool,
    pictures: int,
    seed: int,
    threads: int,
    force: bool,
    dry_run: bool,
) -> int:
    """Do all of it on the tiny example model: data, LoRA, merge, int4, export, comparison, pictures.

    Every stage is an ordinary command, printed before it runs. Finished stages are kept, so the same command
    continues an interrupted demo.
    """
    generator = model.parent / "make_data.py"
    if not (model / "config.json").is_file() or not generator.is_file():
        raise InputError(
            f"{model}: not the example model, which has a config.json in it and make_data.py beside it",
            hint="run from the root of the repository, or name its examples/tiny/model with --model",
        )
    started = time.monotonic()
    data, merged, weights = output / "data", output / "merged", output / "weights"
    counts = {"train": train_scenes, "val": val_scenes, "test": test_scenes, "queries": queries}
    verbs: list[tuple[str, list[object]]] = [
        (
            "Train a LoRA adapter on it",
            [
                *("train", "--checkpoint", model, "--data", data / "train.jsonl", "--val", data / "val.jsonl"),
                *("--output", output / "adapter", "--epochs", epochs, "--learning-rate", learning_rate),
                *("--batch-size", 16, "--seed", seed, *(["--vision-lora"] if vision_lora else [])),
            ],
        ),
        (
            "Merge the adapter into the base",
            ["merge", "--checkpoint", model, "--adapter", output / "adapter", "--output", merged],
        ),
        (
            "Solve int4 weights on records it was trained on",
            [
                *("calibrate", "--checkpoint", merged, "--data", data / "train.jsonl", "--eval", data / "test.jsonl"),
                *("--group-size", 32, "--seed", seed, "--output", weights),
            ],
        ),
        *(
            (
                f"Export the bundle {name}",
                [
                    *("export", "--checkpoint", merged, *(("--weights", weights) if "--format" in options else ())),
                    *(*options, "--output", output / name),
                ],
            )
            for name, options in _BUNDLES.items()
        ),
        (
            "Compare base, tuned checkpoint and bundles on records that none has seen",
            [
                *("bench", f"base={model}", f"tuned={merged}", *(output / name for name in _BUNDLES)),
                *("--baseline", merged, "--data", data / "test.jsonl", "--output", output / "bench"),
                *("--threads", threads),
            ],
        ),
    ]
    steps = len(verbs) + 2
    flags = ["--force"] if force else []

    _heading(console, 1, steps, "Draw scenes of a domain that the base was not trained on")
    _make_data(console, generator, data, counts, seed, force=force, dry_run=dry_run)
    for number, (title, arguments) in enumerate(verbs, start=2):
        _heading(console, number, steps, title)
        code = _run_verb(console, [str(argument) for argument in arguments] + flags, dry_run=dry_run)
        if code != 0:
            return code
    _heading(console, steps, steps, "Draw answers before and after on one page")
    if dry_run:
        return 0
    page = _make_page(output / "bench", output / "page", data / "test.jsonl", pictures, force=force)
    console.note(f"\nDone in {(time.monotonic() - started) / 60:.1f} min. Open {page} in a browser.")
    from edgetune_bench.folder import read_results

    console.result({"page": str(page), **read_results(output / "bench").to_dict()})
    return 0


def _heading(console: Console, number: int, steps: int, title: str) -> None:
    console.note(f"\n[{number}/{steps}] {title}")


def _run_verb(console: Console, arguments: Sequence[str], *, dry_run: bool) -> int:
    """Run `edgetune ARGUMENTS` in a process of its own, as a user would, and return its exit code."""
    console.note(f"$ edgetune {shlex.join(arguments)}")
    if dry_run:
        return 0
    return _run([sys.executable, "-m", "edgetune", *arguments], quiet=console.as_json)


def _run(command: Sequence[str], *, quiet: bool) -> int:
    """Run a process to its end; after Ctrl-C or SIGTERM it is given the time to clean up."""
    sys.stdout.flush()
    # OpenMP threads that spin for long make training several times slower when anything else wants a core; threads
    # that never spin make it a fifth slower when nothing does.
    environment = {"GOMP_SPINCOUNT": "20000"} | os.environ
    return wait_for(subprocess.Popen(command, stdout=sys.stderr if quiet else None, env=environment))


def _make_data(
    console: Console, generator: Path, data: Path, counts: dict[str, int], seed: int, *, force: bool, dry_run: bool
) -> None:
    """Draw the scenes with the example's own script, as a stage: atomically, and only once."""
    options = [text for name, count in counts.items() for text in (f"--{name}", str(count))]
    options += ["--seed", str(seed), "--domain", "night"]
    console.note(f"$ python {shlex.join([str(generator), '--output', str(data), *options])}")

    def build(folder: Path) -> dict[str, Any]:
        command = [sys.executable, str(generator), "--output", str(folder), *options]
        code = _run(command, quiet=console.as_json)
        if code != 0:
            raise InputError(f"{generator} failed with exit code {code}")
        return counts

    run_stage(
        "demo",
        data,
        inputs={"generator": generator},
        settings={"counts": counts, "domain": "night"},
        build=build,
        seed=seed,
        force=force,
        dry_run=dry_run,
    )


def _make_page(bench: Path, output: Path, data: Path, pictures: int, *, force: bool) -> Path:
    """Write the page and the contact sheet from the comparison's predictions, and return the page's path."""
    from edgetune_bench.folder import read_answers, read_results
    from edgetune_bench.gallery import choose, contact_sheet, html_page, samples
    from edgetune_bench.table import accuracy_table, cell, cost_table

    def build(folder: Path) -> dict[str, Any]:
        results = read_results(bench)
        rows, said = results.rows, read_answers(bench, results)
        answers = {name: said[name] for name in _SHOWN}
        shown = samples(answers, choose(answers["base"], pictures))
        tables = [
            [{key: cell(value) for key, value in line.items()} for line in table]
            for table in (accuracy_table(rows), cost_table(rows))
        ]
        intro = [
            "A small Qwen3-VL before and after LoRA on a domain that it was not trained on, and what is left of it "
            "in bundles for a device. Accuracies are in percent, over scenes that no model has seen.",
            f"Pictures: {len(shown)} scenes, spread evenly over the test set, whatever the answers. An answer is "
            "green when its IoU with the true box is 0.5 or more, or when it rightly says that nothing is there. "
            "Dark pictures are brightened for this page; the models saw them as dark as they are.",
        ]
        text = html_page("edgetune demo", intro=intro, tables=tables, samples=shown)
        (folder / _PAGE).write_text(text, encoding="utf-8")
        contact_sheet(shown).save(folder / "pictures.png")
        return {"pictures": len(shown)}

    run_stage(
        "demo",
        output,
        inputs={"bench": bench, "data": data},
        settings={"pictures": pictures, "shown": _SHOWN},
        build=build,
        force=force,
    )
    return output / _PAGE
