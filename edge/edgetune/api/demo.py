"""`edgetune.demo`: the whole chain on the tiny example model, each step a call that a user would make."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.api.bench import bench
from edgetune.api.calibrate import calibrate
from edgetune.api.chain import Step, run_chain
from edgetune.api.export import export
from edgetune.api.merge import merge
from edgetune.api.train import train
from edgetune_core.options import StageOptions, option, takes
from edgetune_core.processes import run_patiently
from edgetune_core.stage import StageResult, run_stage
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_runtime.bench.results import Results

log = logging.getLogger("edgetune")

BUNDLES: dict[str, dict[str, str]] = {
    "fp32": {"precision": "fp32"},
    "int8": {"precision": "int8"},
    "int4": {"format": "onnx"},
    "gptq": {"format": "gptq"},
}
"""Folder of each bundle and what it is exported with; formats come from the weight set."""
_SHOWN = ("base", "tuned", "int4")  # the rows whose answers are drawn on the page
_PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class DemoOptions(StageOptions):
    """Options of `edgetune.demo`.

    Examples:
        >>> from edgetune import DemoOptions
        >>> options = DemoOptions(train_scenes=100, epochs=2)
        >>> str(options.output), options.epochs
        ('runs/demo', 2.0)
    """

    output: Path = option(Path("runs/demo"), help="Folder to write all stages to.")
    model: Path = option(
        Path("examples/tiny/model"),
        help="Hugging Face folder of the base model, examples/tiny/model or model-internvl; make_data.py is in the "
        "folder above it.",
    )
    train_scenes: int = option(450, help="Number of scenes to train on.", minimum=1)
    val_scenes: int = option(10, help="Number of scenes that are scored after each epoch.", minimum=1)
    test_scenes: int = option(50, help="Number of scenes that every row is scored on.", minimum=1)
    queries: int = option(4, help="Records about each scene.", minimum=1)
    epochs: float = option(1.0, help="Passes over the training records.", minimum=0, above=True)
    learning_rate: float = option(2e-3, help="Peak learning rate.", minimum=0, above=True)
    vision_lora: bool = option(True, help="Adapt the vision tower as well.")
    pictures: int = option(16, help="How many pictures the page shows.", minimum=1)
    seed: int = option(0, help="Random seed of the scenes and of the training.")
    threads: int = option(1, help="CPU threads of the measured rows.", minimum=1)


@dataclass(frozen=True)
class Demo:
    """What `edgetune.demo` made.

    Examples:
        >>> from edgetune import Demo
        >>> Demo(page=None, results=None).page is None  # after a dry run
        True

    Attributes:
        page: the page of pictures, to be opened in a browser; None after a dry run.
        results: the comparison of base, tuned checkpoint and bundles; None after a dry run.
    """

    page: Path | None
    results: Results | None


@takes(DemoOptions)
def demo(options: DemoOptions) -> Demo:
    """Do all of it on the tiny example model: data, LoRA, merge, int4, export, comparison, pictures.

    The command of every stage is printed before it runs. Finished stages are kept, so that an interrupted demo, started
    again, goes on where it was.

    Raises:
        InputError: there is no example model at this place.
        EdgetuneError: a stage failed.
    """
    if not (options.model / "config.json").is_file() or not _generator(options).is_file():
        raise InputError(
            f"{options.model}: not the example model, which has a config.json in it and make_data.py beside it",
            hint="run from the root of the repository, or name its examples/tiny/model with --model",
        )
    run_chain(_steps(options), dry_run=options.dry_run)
    if options.dry_run:
        return Demo(None, None)
    from edgetune_bench.folder import read_results

    return Demo(options.output / "page" / _PAGE, read_results(options.output / "bench"))


def _steps(options: DemoOptions) -> Iterator[Step]:
    """Yield the steps. What loads a model is a process of its own, whose memory goes with it."""
    output, model, seed = options.output, options.model, options.seed
    data, adapter, merged, weights = (output / name for name in ("data", "adapter", "merged", "weights"))

    def step(title: str, function: Callable[..., Any], **values: Any) -> Step:
        values |= {"force": options.force}
        # bench starts a process for each row itself, and notes down the command line of this one
        return Step.of(title, function, values, (lambda: _compare(values)) if function is bench else None)

    yield _data_step(options, data)
    training = {"epochs": options.epochs, "learning_rate": options.learning_rate, "batch_size": 16, "seed": seed}
    yield step(
        "Train a LoRA adapter on it",
        train,
        checkpoint=model,
        data=data / "train.jsonl",
        val=data / "val.jsonl",
        output=adapter,
        **training,
        vision_lora=options.vision_lora,
    )
    yield step("Merge the adapter into the base", merge, checkpoint=model, adapter=adapter, output=merged)
    yield step(
        "Solve int4 weights on records it was trained on",
        calibrate,
        checkpoint=merged,
        data=data / "train.jsonl",
        evaluation=data / "test.jsonl",
        group_sizes=(32,),
        seed=seed,
        output=weights,
    )
    for name, chosen in BUNDLES.items():
        source = {"weights": weights} if "format" in chosen else {}
        yield step(f"Export the bundle {name}", export, checkpoint=merged, **source, **chosen, output=output / name)
    yield step(
        "Compare base, tuned checkpoint and bundles on records that none has seen",
        bench,
        targets=(f"base={model}", f"tuned={merged}", *(output / name for name in BUNDLES)),
        baseline=merged,
        data=data / "test.jsonl",
        output=output / "bench",
        threads=options.threads,
    )
    yield Step("Draw answers before and after on one page", "", lambda: _make_page(options))


def _compare(values: dict[str, Any]) -> StageResult:
    """Measure; a row that failed ends the demo."""
    measured = bench(**values)
    measured.raise_for_failures()
    assert measured.stage is not None  # it has an output
    return measured.stage


def _generator(options: DemoOptions) -> Path:
    return options.model.parent / "make_data.py"


def _data_step(options: DemoOptions, data: Path) -> Step:
    """Draw scenes with the example's own script, as a stage: atomically, and only once."""
    generator = _generator(options)
    counts = {
        "train": options.train_scenes,
        "val": options.val_scenes,
        "test": options.test_scenes,
        "queries": options.queries,
    }
    words = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    words += ["--seed", str(options.seed), "--domain", "night"]

    def build(folder: Path) -> dict[str, Any]:
        code = run_patiently([sys.executable, str(generator), "--output", str(folder), *words])
        if code != 0:
            raise InputError(f"{generator} failed with exit code {code}")
        return counts

    def call() -> StageResult:
        return run_stage(
            "demo",
            data,
            inputs={"generator": generator},
            settings={"counts": counts, "domain": "night"},
            build=build,
            seed=options.seed,
            force=options.force,
        )

    command = shlex.join(["python", str(generator), "--output", str(data), *words])
    return Step("Draw scenes of a domain that the base was not trained on", command, call)


def _title(model: Path) -> str:
    """The name of a checkpoint's family."""
    from edgetune_core.checkpoint import HubCheckpoint

    return HubCheckpoint.open(model).family.title


def _make_page(options: DemoOptions) -> StageResult:
    """Write the page and the contact sheet from the comparison's predictions."""
    from edgetune_bench.folder import read_answers, read_results
    from edgetune_bench.gallery import choose, contact_sheet, html_page, samples
    from edgetune_bench.table import accuracy_table, cell, cost_table

    measured = options.output / "bench"

    def build(folder: Path) -> dict[str, Any]:
        results = read_results(measured)
        rows, said = results.rows, read_answers(measured, results)
        answers = {name: said[name] for name in _SHOWN}
        shown = samples(answers, choose(answers["base"], options.pictures))
        tables = [
            [{key: cell(value) for key, value in line.items()} for line in table]
            for table in (accuracy_table(rows), cost_table(rows))
        ]
        intro = [
            f"A small {_title(options.model)} before and after LoRA on a domain that it was not trained on, and what "
            "is left of it in bundles for a device. Accuracies are in percent, over scenes that no model has seen.",
            f"Pictures: {len(shown)} scenes, spread evenly over the test set, whatever the answers. An answer is "
            "green when its IoU with the true box is 0.5 or more, or when it rightly says that nothing is there. "
            "Dark pictures are brightened for this page; the models saw them as dark as they are.",
        ]
        text = html_page("edgetune demo", intro=intro, tables=tables, samples=shown)
        (folder / _PAGE).write_text(text, encoding="utf-8")
        contact_sheet(shown).save(folder / "pictures.png")
        return {"pictures": len(shown)}

    return run_stage(
        "demo",
        options.output / "page",
        inputs={"bench": measured, "data": options.output / "data" / "test.jsonl"},
        settings={"pictures": options.pictures, "shown": _SHOWN},
        build=build,
        force=options.force,
    )
