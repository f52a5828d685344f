"""What `eval` and `bench` share: run a study, into a stage folder or a temporary one, and report it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgetune.commands._common import Console
from edgetune_core.stage import check_input, run_stage
from edgetune_runtime.errors import BundleError, EdgetuneError, GateFailed, InputError, MissingDependency
from edgetune_runtime.manifest import read_manifest

if TYPE_CHECKING:
    from edgetune_bench.study import Study
    from edgetune_runtime.bench.results import Results


def run_study(
    console: Console,
    stage: str,
    study: Study,
    *,
    output: Path | None,
    force: bool,
    dry_run: bool,
    show: Callable[[Results], None],
    copies: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Run a study, print it with `show` or as JSON, and raise GateFailed after that when a row failed.

    The only row of `eval` fails with its own error and exit code.

    `copies` says where to copy files of the result's folder, by their names. An earlier result with a failed row counts
    as unfinished: what was missing may have been installed since.
    """
    from edgetune_bench.folder import read_results

    def build(folder: Path) -> dict[str, Any]:
        return counts(study.build(folder, console.note))

    if output is None:
        for role, path in study.inputs.items():
            check_input(path, role)
        if dry_run:
            console.note(f"would run {', '.join(target.name for target in study.targets)} and write nothing")
            return
        with tempfile.TemporaryDirectory() as folder:
            results = study.build(Path(folder), console.note)
            _copy(Path(folder), copies, console)
    else:
        done = run_stage(
            stage,
            output,
            inputs=study.inputs,
            settings=study.settings,
            build=build,
            force=force or _unfinished(output),
            dry_run=dry_run,
        )
        if dry_run:
            console.note(f"{output}: {'unchanged, would be kept' if done.skipped else 'would be written'}")
            return
        if done.skipped:
            console.note(f"{output}: nothing has changed, kept (--force measures again)")
        results = read_results(output)
        _copy(output, copies, console)
    show(results)
    console.result(results.to_dict())
    if stage == "eval" and results.failed:  # its only row, whose failure is the command's
        (row,) = results.failed
        kinds: dict[int, type[EdgetuneError]] = {2: InputError, 3: MissingDependency}
        raise kinds.get(row.exit_code, GateFailed)(f"{row.name}: {row.reason}")
    if failed := [row.name for row in results.failed]:
        hint = f"{output / 'logs'} has what they wrote" if output else None
        raise GateFailed(f"{len(failed)} of {len(results.rows)} rows failed: {', '.join(failed)}", hint=hint)


def counts(results: Results) -> dict[str, Any]:
    """What the manifest of a measurement says of it: the number of rows, and the names of those that failed."""
    return {"rows": len(results.rows), "failed": [row.name for row in results.failed]}


def show_tables(console: Console, results: Results, output: Path) -> None:
    """Print accuracies, costs, remarks and where the report is."""
    from edgetune_bench import folder, table

    console.table(table.accuracy_table(results.rows))
    console.line()
    console.table(table.cost_table(results.rows))
    for remark in table.remarks(results.rows):
        console.line(remark)
    console.note(f"report: {output / folder.REPORT}; next: edgetune gate {output} --min METRIC=PERCENT")


def _copy(folder: Path, copies: Mapping[str, Path], console: Console) -> None:
    """Copy files of the folder to where they are wanted; one that a failed row did not write is only said."""
    for name, place in copies.items():
        if (folder / name).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place)
        else:
            console.note(f"{place}: not written, for nothing was answered")


def _unfinished(output: Path) -> bool:
    try:
        return bool(read_manifest(output)["result"]["failed"])
    except (BundleError, KeyError):
        return False
