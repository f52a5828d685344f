"""A measurement written to a folder: what eval and bench have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edgetune_bench import average_precision, captions, gallery
from edgetune_bench import folder as folders
from edgetune_bench.targets import CHECKPOINT
from edgetune_runtime.bench import machine, plan
from edgetune_runtime.bench.matrix import Note, report_lines
from edgetune_runtime.bench.options import Options
from edgetune_runtime.bench.plan import Answers, Plan
from edgetune_runtime.bench.predictions import Prediction, grounding, questions
from edgetune_runtime.bench.results import Measured, Results
from edgetune_runtime.bench.scores import LEVEL, RESAMPLES, SEED, score_difference
from edgetune_runtime.bench.targets import Target
from edgetune_runtime.typed_json import encode

GALLERY = "gallery.html"
METRICS = ("ap", "bleu", "cider")
"""Figures that are added when asked for: COCO-style average precision of boxes, BLEU and CIDEr-D of answers."""


@dataclass(frozen=True)
class Study:
    """A plan and what is written of it; `prepare` makes one.

    `pictures` is the number of answers drawn beside the truth, `report` whether an HTML page is written, `metrics`
    which of `METRICS` are added, `worst` how many wrong answers of the first row are
    drawn on a page of their own.
    """

    plan: Plan
    pictures: int
    report: bool
    metrics: Sequence[str] = ()
    worst: int = 0

    @property
    def targets(self) -> Sequence[Target]:
        """The rows."""
        return self.plan.targets

    @property
    def inputs(self) -> Mapping[str, Path]:
        """Files and folders that the result depends on, by role."""
        return self.plan.inputs

    @property
    def settings(self) -> dict[str, Any]:
        """Everything else that the result depends on."""
        return {
            **self.plan.options.to_dict(),
            "rows": [target.name for target in self.targets],
            "workers": [target.worker[2:] for target in self.targets],
            "baseline": self.plan.baseline,
            "pictures": self.pictures,
            "report": self.report,
            "metrics": list(self.metrics),
            "worst": self.worst,
            "images_sha256": self.plan.facts.images_sha256,
            "damaged": dict(self.plan.damaged),
            "machine": encode(machine.describe()),
        }

    def build(self, folder: Path, note: Note) -> Results:
        """Run everything into `folder` and return the results, which are also written there.

        Writes what `edgetune_bench.folder` describes, logs/ of workers that had something to say, and, when they were
        asked for, pictures.png and gallery.html.
        """
        watch = show_progress if sys.stderr.isatty() else report_lines(note)
        results, answers = self.plan.run(folder, note=note, watch=watch)
        for log in (folder / "logs").iterdir():
            if log.stat().st_size == 0:
                log.unlink()
        results = add_metrics(results, answers, self.metrics)
        first = next(iter(answers.items()), None)
        pictures = [answer.image for answer in first[1]] if first else []
        folders.write(folder, results, answers, report=self.report, pictures=pictures)
        if first and self.pictures and (sources := gallery.choose(first[1], self.pictures)):
            gallery.contact_sheet(gallery.samples(answers, sources)).save(folder / "pictures.png")
        if first and self.worst:
            (folder / GALLERY).write_text(gallery.error_page(*first, self.worst), encoding="utf-8")
        return results


def add_metrics(results: Results, answers: Answers, metrics: Sequence[str]) -> Results:
    """Add some of `METRICS` to the rows that ran, each to the kind of records that it is of."""
    rows = [_add(row, answers[row.name], metrics) if isinstance(row, Measured) else row for row in results.rows]
    return replace(results, rows=tuple(rows), metrics=tuple(metrics) or None)


def _add(row: Measured, said: Sequence[Prediction], metrics: Sequence[str]) -> Measured:
    if row.ground and "ap" in metrics:
        precision = average_precision.average_precision(grounding(said), seed=SEED, level=LEVEL)
        row = replace(row, ground=replace(row.ground, coco=precision))
    asked = questions(said)
    vqa = row.vqa
    if vqa and asked:
        predictions, references = [answer.raw for answer in asked], [answer.expected for answer in asked]
        images = [answer.image for answer in asked]
        if "bleu" in metrics:
            bleu = captions.bleu(predictions, references, images, seed=SEED, resamples=RESAMPLES, level=LEVEL)
            vqa = replace(vqa, **bleu)
        if "cider" in metrics and len(asked) > 1:
            scores = captions.cider_d(predictions, references)
            interval = score_difference([0.0] * len(scores), scores, images)
            vqa = replace(vqa, cider=sum(scores) / len(scores), cider_interval=interval)
    return replace(row, vqa=vqa)


def prepare(
    targets: Sequence[Target],
    data: Path,
    *,
    options: Options,
    baseline: Target | None = None,
    made_from: Mapping[str, Path] | None = None,
    pictures: int = 0,
    report: bool = False,
    metrics: Sequence[str] = (),
    worst: int = 0,
) -> Study:
    """Check all input before anything runs. Without a baseline, the only checkpoint among several targets is it.

    `made_from` has the files that `data` is a copy of, where it is one.

    Raises:
        InputError: nothing to answer, more rounds than records, or a folder named twice.
        RecordError, ImageError: a record or its image is broken.
        MissingDependency: a library that a metric needs is not installed.
    """
    if "ap" in metrics:
        average_precision.library()
    if "bleu" in metrics:
        captions.library()
    checkpoints = [target for target in targets if target.kind == CHECKPOINT]
    if baseline is None and len(checkpoints) == 1 and len(targets) > 1:
        baseline = checkpoints[0]
    checked = plan.prepare(targets, data, options=options, baseline=baseline, made_from=made_from, watch=show_progress)
    return Study(checked, pictures, report, tuple(metrics), worst)


@contextmanager
def show_progress(title: str, total: int, unit: str) -> Iterator[Any]:
    """A bar for steps that take longer than two seconds, none off a terminal."""
    with tqdm(total=total, desc=title, unit=unit, disable=None, delay=2, leave=unit == "record") as bar:
        yield partial(_advance, bar)


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
