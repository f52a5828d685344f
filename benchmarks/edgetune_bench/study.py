"""A measurement written to a folder: what eval and bench have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edgetune_bench import folder as folders
from edgetune_bench import further, gallery
from edgetune_bench.errors import error_page
from edgetune_bench.page import contact_sheet
from edgetune_bench.targets import CHECKPOINT
from edgetune_runtime.bench import machine, plan
from edgetune_runtime.bench.matrix import Note, Options
from edgetune_runtime.bench.plan import Plan
from edgetune_runtime.bench.targets import Target

GALLERY = "gallery.html"


@dataclass(frozen=True)
class Study:
    """A plan and what is written of it; `prepare` makes one.

    `pictures` is the number of answers drawn beside the truth, `report` whether an HTML page is written, `metrics`
    which further figures are computed (`edgetune_bench.further`), `worst` how many wrong answers of the first row are
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
            "images_sha256": self.plan.images_sha256,
            "damaged": dict(self.plan.damaged),
            "machine": machine.describe(),
        }

    def build(self, folder: Path, note: Note) -> dict[str, Any]:
        """Run everything into `folder` and return the results, which are also written there.

        Writes what `edgetune_bench.folder` describes, logs/ of workers that had something to say, and, when they were
        asked for, pictures.png and gallery.html.
        """
        results, answers = self.plan.run(folder, note=note, watch=show_progress)
        for log in (folder / "logs").iterdir():
            if log.stat().st_size == 0:
                log.unlink()
        further.add(results, answers, self.metrics)
        folders.write(folder, results, answers, report=self.report)
        if self.pictures and answers:
            sources = gallery.choose(next(iter(answers.values())), self.pictures)
            if sources:
                contact_sheet(gallery.samples(answers, sources)).save(folder / "pictures.png")
        if self.worst and answers:
            name, rows = next(iter(answers.items()))
            (folder / GALLERY).write_text(error_page(name, rows, self.worst), encoding="utf-8")
        return results


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
    further.check(metrics)
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
