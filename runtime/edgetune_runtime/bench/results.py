"""The results of a measurement: `results.json` of `edgetune bench` and `eval`, the file of `edgetune-run bench`.

`results.schema.json` beside this module describes the same for other tools; a test holds the two together. All shares
and accuracies are 0 to 1, all times seconds, all sizes bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records import Shard
from edgetune_runtime.typed_json import (
    Bytes,
    Change,
    Count,
    Number,
    OrAbsent,
    Range,
    Seconds,
    Share,
    decode,
    encode,
)

SCHEMA: Literal[1] = 1


def _check_order(**figures: float) -> None:
    for (lower, low), (upper, high) in pairwise(figures.items()):
        if low > high:
            raise InputError(
                f"its {lower} {low:g} is above its {upper} {high:g}", hint="measure again: no answers have such figures"
            )


@dataclass(frozen=True)
class Interval:
    """A share, or a difference of shares, with its interval, and the records and pictures it rests on."""

    value: Change
    low: Change
    high: Change
    records: Number
    images: Number

    def __post_init__(self) -> None:
        """Refuse an interval whose ends are the wrong way round."""
        _check_order(low=self.low, high=self.high)


@dataclass(frozen=True)
class ScoreInterval:
    """The same of a score that is no share: BLEU (0-100) and CIDEr-D (0-10)."""

    value: float
    low: float
    high: float
    records: Number
    images: Number

    def __post_init__(self) -> None:
        """Refuse an interval whose ends are the wrong way round."""
        _check_order(low=self.low, high=self.high)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO-style AP of boxes; all None, with the reason, where there is none."""

    ap: Share | None
    ap50: Share | None
    ap75: Share | None
    ap_small: Share | None
    ap_medium: Share | None
    ap_large: Share | None
    ap_interval: Interval | None
    reason: str | None


@dataclass(frozen=True)
class Grounding:
    """Accuracies of answers with boxes (`metrics.GroundingScores`); None where no record counts for one.

    `refused` counts all refusals, `refused_absent` those of absent objects, `unparsed` answers that are neither boxes
    nor a refusal, `truncated` those that break off. `coco` is there when it was asked for.
    """

    samples: Number
    present: Count
    acc50: Share | None
    acc75: Share | None
    acc90: Share | None
    miou: Share | None
    refusal_accuracy: Share | None
    refusal_precision: Share | None
    false_refusals: Share | None
    parse_failures: Share | None
    acc50_interval: Interval | None
    miou_interval: Interval | None
    refusal_accuracy_interval: Interval | None
    refusal_precision_interval: Interval | None
    refused: Count
    refused_absent: Count
    unparsed: Count
    truncated: Count
    acc75_interval: Interval | None = None
    acc90_interval: Interval | None = None
    parse_failures_interval: Interval | None = None
    coco: OrAbsent[AveragePrecision] = None


@dataclass(frozen=True)
class Vqa:
    """Accuracies of answers in words; BLEU and CIDEr-D are there when they were asked for."""

    samples: Number
    accuracy: Share
    accuracy_interval: Interval | None
    anls: Share
    anls_interval: Interval | None
    exact: Share
    exact_interval: Interval | None
    bleu: OrAbsent[Annotated[float, Range(0)]] = None
    bleu_signature: OrAbsent[str] = None
    bleu_interval: OrAbsent[ScoreInterval] = None
    cider: OrAbsent[Annotated[float, Range(0)]] = None
    cider_interval: OrAbsent[ScoreInterval] = None


@dataclass(frozen=True)
class McNemarTest:
    """Hits at IoU 0.5 that only the baseline and only the row has, and the exact two-sided p-value."""

    only_baseline: Count
    only_row: Count
    p: Share


@dataclass(frozen=True)
class WorstBox:
    """The record whose boxes are farthest from the baseline's."""

    iou: Share
    source: str


@dataclass(frozen=True)
class BoxDrift:
    """How far boxes are from the baseline's, whatever the truth is: mean IoU, share below 0.9, and the worst."""

    records: Number
    iou: Share
    iou_interval: Interval | None
    moved: Share
    moved_interval: Interval | None
    worst: WorstBox


@dataclass(frozen=True)
class Differences:
    """A row minus its baseline, record by record; None where no record has it, or one picture alone does."""

    acc50: Interval | None
    acc75: Interval | None
    acc90: Interval | None
    miou: Interval | None
    vqa: Interval | None
    mcnemar: McNemarTest | None
    drift: BoxDrift | None


@dataclass(frozen=True)
class Percentiles:
    """Seconds of a stage over the records."""

    p50: Seconds
    p95: Seconds
    p99: Seconds

    def __post_init__(self) -> None:
        """Refuse percentiles that no times have: a higher one is never the shorter time."""
        _check_order(p50=self.p50, p95=self.p95, p99=self.p99)


@dataclass(frozen=True)
class Stages:
    """Each stage of an answer (`timing.Timings`)."""

    preprocess: Percentiles
    vision: Percentiles
    prefill: Percentiles
    decode: Percentiles
    total: Percentiles


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a worker's process cost: everything but the answers.

    `peak_rss_bytes` is the largest resident memory, `peak_gpu_bytes` the growth of the GPU's used memory (None without
    a driver), `cold_start_s` the time from process start to first answer, `others_cpu_share` the part of the CPU that
    other processes took, `load_average` the machine's before and after. `self_check` is a bundle's: "none" where its
    export compared nothing.
    """

    engine: str
    size_bytes: Bytes
    load_s: Seconds
    cold_start_s: Seconds
    peak_rss_bytes: Bytes
    peak_gpu_bytes: Bytes | None
    others_cpu_share: Share | None
    precision: str | None = None
    device: str = "cpu"
    threads: Number | None = None
    format: OrAbsent[str] = None
    warmup: OrAbsent[Count] = None
    load_average: OrAbsent[tuple[Seconds, Seconds]] = None
    self_check: OrAbsent[str] = None


@dataclass(frozen=True, kw_only=True)
class Report(Costs):
    """What a worker writes: its costs, and its answers in the order of the records."""

    rows: tuple[Prediction, ...]
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class _Row:
    name: str
    path: str
    kind: str
    baseline: bool
    title: str | None = None
    machine: OrAbsent[str] = None


@dataclass(frozen=True, kw_only=True)
class Measured(_Row, Costs):
    """A row that ran. `delta` is there beside a baseline that ran, `answers` in the file of a device."""

    stages: Stages
    tokens_per_second: Seconds | None
    ground: Grounding | None
    vqa: Vqa | None
    delta: OrAbsent[Differences] = None
    answers: OrAbsent[tuple[Prediction, ...]] = None
    status: Literal["ok"] = "ok"


@dataclass(frozen=True, kw_only=True)
class Failed(_Row):
    """A row that could not be run, with what its process said last; its exit code is negative for a signal."""

    reason: str
    exit_code: int
    status: Literal["failed"] = "failed"


Row = Measured | Failed


@dataclass(frozen=True)
class Options:
    """How rows are run; the same for all of them.

    `rounds` deals the records out into that many parts and runs part after part, each over all targets, so that a
    machine that slows down for a while slows all of them. `stall_s` ends a worker that answers nothing for so long.
    Without `threads` the engine chooses, as it must on a GPU. `max_pixels` bounds the resized pictures of bundles; a
    checkpoint has its own limits. `shard` is the part that is answered of the records that `limit` leaves.
    """

    limit: Number | None = None
    device: str = "cpu"
    threads: Number | None = None
    warmup: Count = 2
    rounds: Number = 1
    max_new_tokens: Number = 128
    stall_s: Seconds = 600.0
    max_pixels: Number | None = None
    shard: OrAbsent[Shard] = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no measurement; not-a-number is smaller than nothing."""
        if not 1 <= self.stall_s <= 1e9:
            raise InputError(f"--stall {self.stall_s:g}: must be a number of seconds from 1 on")
        if self.warmup < 0:
            raise InputError(f"--warmup {self.warmup}: must be 0 or more")

    def arguments(self, data: Path, part: int) -> list[str]:
        """The arguments of a worker that runs round `part` (from 0) over `data`."""
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        shard = [] if self.shard is None else ["--shard", str(self.shard)]
        return [
            *("--data", str(data), "--device", self.device, "--warmup", str(self.warmup)),
            *("--max-new-tokens", str(self.max_new_tokens), "--round", f"{part + 1}/{self.rounds}", *limit, *shard),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        found: dict[str, Any] = encode(self)
        return found


@dataclass(frozen=True)
class Machine:
    """Where rows were measured (`bench.machine.describe`); None where the system does not tell."""

    cpu: str
    gpu: str | None = None
    arch: str | None = None
    cores: Number | None = None
    usable_cores: Number | None = None
    memory_bytes: Bytes | None = None
    governor: str | None = None
    board: str | None = None
    os: str | None = None


@dataclass(frozen=True)
class Job:
    """When, by which command and on which machine a shard was measured."""

    created: str
    command: str
    machine: Machine


@dataclass(frozen=True)
class Origin:
    """When, by which command and on which machine rows were measured, and the jobs that they are joined from."""

    created: str
    command: str
    machine: Machine
    versions: dict[str, str]
    options: Options
    shards: OrAbsent[tuple[Job, ...]] = None


@dataclass(frozen=True)
class Statistics:
    """How the intervals are made."""

    method: str
    level: Annotated[float, Range(0.5, 0.9999)]
    resamples: Number
    seed: int


@dataclass(frozen=True)
class Whole:
    """The set that a shard is a part of; the sha256 is over all its pictures' files."""

    records: Number
    images_sha256: str


@dataclass(frozen=True)
class Data:
    """What every row answered; the sha256 is over the pictures' files, in record order.

    A shard has its own records and pictures here, `records_sha256` over their questions and accepted answers
    (`bench.shards`), and the `whole` that it is a part of.
    """

    path: str
    records: Number
    images_sha256: str
    records_sha256: OrAbsent[str] = None
    whole: OrAbsent[Whole] = None


@dataclass(frozen=True)
class Input:
    """A file or folder that the results depend on."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """A measurement. One machine's has `machine`, `versions` and `options`; joined ones have them in `machines`.

    `metrics` names the further figures that were asked for. `shards` are the jobs, in the order of their shards, of
    which one machine's results were joined.
    """

    schema: Literal[1] = SCHEMA
    created: str
    command: str
    statistics: Statistics
    data: Data
    inputs: dict[str, Input]
    baseline: str | None = None
    rows: tuple[Row, ...]
    machine: OrAbsent[Machine] = None
    versions: OrAbsent[dict[str, str]] = None
    options: OrAbsent[Options] = None
    machines: OrAbsent[dict[str, Origin]] = None
    metrics: OrAbsent[tuple[str, ...]] = None
    shards: OrAbsent[tuple[Job, ...]] = None

    def __post_init__(self) -> None:
        """Refuse what no measurement writes: rows of one name, or a baseline that is not the row that says so."""
        if not self.rows:
            raise InputError("rows: there are none")
        for row in self.rows:
            check_row_name(row.name)
        twice = [name for name, count in Counter(row.name for row in self.rows).items() if count > 1]
        if twice:
            raise InputError(f"rows[{twice[0]!r}]: two rows have this name")
        marked = [row.name for row in self.rows if row.baseline]
        if marked != ([] if self.baseline is None else [self.baseline]):
            raise InputError(f"baseline: is {self.baseline!r}, but the rows marked as baseline are {marked}")
        if self.machines is None and (self.machine is None or self.versions is None or self.options is None):
            raise InputError("'machine', 'versions' and 'options' belong together, or 'machines' in their place")
        if "data" not in self.inputs:
            raise InputError("inputs: no 'data'")
        if len({self.shard is None, self.data.whole is None, self.data.records_sha256 is None}) > 1:
            raise InputError("'shard' of 'options', and 'whole' and 'records_sha256' of 'data' belong together")

    @property
    def ran(self) -> list[Measured]:
        """The rows that did not fail."""
        return [row for row in self.rows if isinstance(row, Measured)]

    @property
    def failed(self) -> list[Failed]:
        """The rows that did."""
        return [row for row in self.rows if isinstance(row, Failed)]

    @property
    def shard(self) -> Shard | None:
        """The part of the data that was answered; None for all of it."""
        return self.options.shard if self.options else None

    @property
    def shard_remark(self) -> str | None:
        """A line for the results of a shard; None for those of a whole set."""
        if self.shard is None or self.data.whole is None:
            return None
        some = f"{self.data.records:,} of {self.data.whole.records:,} records"
        return f"shard {self.shard}, {some}: edgetune bench merge joins all shards into a measurement"

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where rows come from, by the machines' names; the only machine has the name ""."""
        if self.machines is not None:
            return self.machines
        assert self.machine is not None and self.versions is not None and self.options is not None
        return {"": Origin(self.created, self.command, self.machine, self.versions, self.options, self.shards)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = encode(self)
        for row, line in zip(self.rows, found["rows"], strict=True):
            if isinstance(row, Measured) and row.answers is not None:
                line["answers"] = [answer.to_dict() for answer in row.answers]
        return found


def check_row_name(name: str) -> None:
    """Refuse what cannot stand in tables and name the file of a row's predictions.

    Raises:
        InputError: the name is empty, longer than 200 bytes, or holds line breaks or other signs that do not print.
    """
    if not name.isprintable() or not 0 < len(name.encode()) <= 200:
        raise InputError(f"{name!r:.60} is not the name of a row", hint="use up to 200 letters, digits and signs")


def read_results(path: Path) -> Results:
    """Read a file of results and check every value of it.

    Raises:
        InputError: the file is missing, is not such a file, or another version wrote it; the message names the file,
            the row and the field.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", hint="give what edgetune bench or edgetune-run bench wrote")
    value = read_json_value(path)
    if not (isinstance(value, dict) and isinstance(value.get("rows"), list) and "data" in value):
        raise InputError(f"{path}: not the results of a measurement (no 'rows' or no 'data')")
    schema = value.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise InputError(
            f"{path}: schema {excerpt(schema, 40)}, this version reads schema {SCHEMA}",
            hint="measure again with this version of edgetune",
        )
    try:
        return decode(Results, value)
    except InputError as error:
        raise InputError(f"{path}: {error}", hint=error.hint) from error


@cache
def results_schema() -> dict[str, Any]:
    """The JSON Schema of a file of results, draft 2020-12 (results.schema.json in this package)."""
    text = (files(__package__) / "results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
