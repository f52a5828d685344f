"""What the verbs that measure have in common: which records, on which device, and what comes of a study."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from edgetune_core.options import Options, StageOptions, option
from edgetune_core.stage import StageResult, check_input, run_stage
from edgetune_runtime.errors import BundleError, GateFailed, InputError
from edgetune_runtime.manifest import read_manifest

if TYPE_CHECKING:
    from edgetune_bench.study import Study
    from edgetune_runtime.bench.results import Results
    from edgetune_runtime.records import Shard

log = logging.getLogger("edgetune")


@dataclass(frozen=True)
class Measurement:
    """What `edgetune.bench`, `evaluate` and `merge_results` found.

    Examples:
        >>> from edgetune import Measurement
        >>> planned = Measurement(names=("fp32", "int4"), results=None, stage=None)  # after a dry run
        >>> planned.raise_for_failures()
        >>> planned.names
        ('fp32', 'int4')

    Attributes:
        names: of the rows, in the order of the table.
        results: the figures of every row, as results.json holds them; None after a dry run.
        stage: the folder that was written; None where none was asked for.
    """

    names: tuple[str, ...]
    results: Results | None
    stage: StageResult | None

    def raise_for_failures(self) -> None:
        """Do nothing when every row ran.

        Raises:
            GateFailed: some rows failed; their `reason` is in the results.
        """
        failed = self.results.failed if self.results else []
        if failed:
            names = ", ".join(row.name for row in failed)
            hint = f"{self.stage.folder / 'logs'} has what they wrote" if self.stage else None
            raise GateFailed(f"{len(failed)} of {len(self.names)} rows failed: {names}", hint=hint)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Options):
    """Which records are answered, and on what."""

    data: Path = option(help="Records with their answers, in any format that data convert reads.")
    limit: int | None = option(None, help="Use only the first N records; all unless given.", minimum=1)
    device: Literal["cpu", "cuda"] = option("cpu", help="Device to compute on.")
    threads: int | None = option(
        None, help="CPU threads; by default all usable cores, with --device cuda the engine's own choice."
    )
    max_new_tokens: int = option(128, help="Longest answer, in tokens.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ShardOptions(MeasureOptions):
    """The same where a run may answer a part of the records."""

    shard: str | None = option(
        None,
        help="Use only the records of every N-th picture from the I-th on; `edgetune bench merge` joins the results.",
        metavar="I/N",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.part

    @property
    def part(self) -> Shard | None:
        """The shard that was asked for."""
        if self.shard is None:
            return None
        from edgetune_runtime.records import Shard

        try:
            return Shard.parse(self.shard)
        except InputError as error:
            raise InputError(f"--shard: {error}", hint=error.hint) from None


def measure_study(
    stage: str,
    study: Study,
    output: Path | None,
    flags: StageOptions,
    copies: Mapping[str, Path] = MappingProxyType({}),
) -> Measurement:
    """Run a study into its folder, or into a temporary one.

    `copies` says where to copy files of the folder, by their names. An earlier result with a failed row counts as
    unfinished: what was missing may have been installed since.
    """
    from edgetune_bench.folder import read_results

    names = tuple(target.name for target in study.targets)
    if output is None:
        for role, path in study.inputs.items():
            check_input(path, role)
        if flags.dry_run:
            return Measurement(names, None, None)
        with tempfile.TemporaryDirectory() as folder:
            results = study.build(Path(folder), log.info)
            _copy(Path(folder), copies)
        return Measurement(names, results, None)
    done = run_stage(
        stage,
        output,
        inputs=study.inputs,
        settings=study.settings,
        build=lambda work: counts(study.build(work, log.info)),
        force=flags.force or _unfinished(output),
        dry_run=flags.dry_run,
    )
    if flags.dry_run:
        return Measurement(names, None, done)
    _copy(output, copies)
    return Measurement(names, read_results(output), done)


def counts(results: Results) -> dict[str, Any]:
    """What the manifest of a measurement says of it."""
    return {"rows": len(results.rows), "failed": [row.name for row in results.failed]}


def _copy(folder: Path, copies: Mapping[str, Path]) -> None:
    """Copy files of the folder to where they are wanted; one that a failed row did not write is only remarked."""
    for name, place in copies.items():
        if (folder / name).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place)
        else:
            log.info(f"{place}: not written, for nothing was answered")


def _unfinished(output: Path) -> bool:
    try:
        return bool(read_manifest(output)["result"]["failed"])
    except (BundleError, KeyError):
        return False
