"""`edgetune calibrate`: int4 weights for a checkpoint, solved on your own records."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgetune.api.calibrate import calibrate
from edgetune.commands._common import Console, verb
from edgetune_core.stage import StageResult


@verb(calibrate)
def command(console: Console, **options: Any) -> None:
    stage = calibrate(**options)
    if console.stage(stage, f"calibrate on {stage.facts['records']} records"):
        _report(console, stage)
    if not stage.dry_run:
        paths = ("--checkpoint", options["checkpoint"], "--weights", stage.folder)
        console.next_verb("export", *paths, "--output", "BUNDLE")


def _report(console: Console, stage: StageResult) -> None:
    weights = stage.result["weightset"]
    calibration = weights["calibration"]
    size = sum(entry["size"] for entry in stage.manifest["files"].values())
    console.line(
        f"{stage.folder}: {len(weights['linears'])} layers ({weights['method']}, {size / 1e6:.1f} MB) on "
        f"{calibration['samples']} records, {calibration['tokens']:,} tokens, in {stage.result['seconds']:.0f} s; "
        f"{calibration['mean_error']:.2%} of a layer's output lost, most in {calibration['worst_linear']}"
    )
    if calibration["choice"]:
        _report_choice(console, weights["linears"], calibration["choice"])


def _report_choice(console: Console, linears: dict[str, Any], choice: dict[str, Any]) -> None:
    """Say how many layers got which format, and what their boxes became."""
    kinds = Counter((entry["bits"], entry["group_size"]) for entry in linears.values())
    counts = ", ".join(f"{count} of {bits} bits in groups of {size}" for (bits, size), count in sorted(kinds.items()))
    console.line(
        f"formats: {counts}; {choice['layers_mb']:.2f} MB of layers; boxes of the calibration records move by "
        f"{choice['measured_drop']:.2f} % ({choice['expected_drop']:.2f} % expected)"
    )
    limit = choice["max_drop"]
    if limit is not None and choice["measured_drop"] > limit:
        console.note(f"the boxes move by more than --max-drop {limit:g}: the layers' errors did not add up as expected")
