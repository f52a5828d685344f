"""`edgetune export`: a merged checkpoint becomes a bundle for one engine, or one for each of several."""

from __future__ import annotations

from typing import Any

from edgetune.api.export import export, export_formats
from edgetune.commands._common import Console, verb


@verb(export)
def command(console: Console, **options: Any) -> int:
    """Write a bundle from a merged checkpoint, checked against transformers.

    With --formats, a bundle for each of several engines, from one calibration.
    """
    return _several(console, options) if options["formats"] else _one(console, options)


def _one(console: Console, options: dict[str, Any]) -> int:
    stage = export(**options)
    console.line(f"{stage.folder}: {_state(stage.skipped, options['dry_run'])}")
    if not options["dry_run"]:
        console.table([_row(stage.manifest)])
        _tell_readers(console, stage.manifest)
        deferred = stage.manifest["result"]["bundle"].get("trt", {}).get("deferred")
        if deferred:
            console.line(deferred)
        _suggest_bench(console, options["checkpoint"], [stage])
    console.result({"output": stage.folder, "skipped": stage.skipped, "manifest": stage.manifest})
    return 0


def _several(console: Console, options: dict[str, Any]) -> int:
    """Return 0, or the exit code of the first format that failed; the others are written all the same."""
    done = export_formats(**options)
    if options["data"]:
        console.line(f"{done.weights}: {'would be calibrated' if options['dry_run'] else 'calibrated'}")
    for stage in done.bundles.values():
        console.line(f"{stage.folder}: {_state(stage.skipped, options['dry_run'])}")
    for name, error in done.failures.items():
        console.note(f"error: {error}")
        if error.hint:
            console.note(f"hint: {error.hint}")
        console.note(f"{options['output'] / name}: failed with exit code {error.exit_code}")
    if not options["dry_run"]:
        console.table([_row(stage.manifest) for stage in done.bundles.values()])
        for stage in done.bundles.values():
            _tell_readers(console, stage.manifest)
        _suggest_bench(console, options["checkpoint"], list(done.bundles.values()))
    told = {
        name: {"output": stage.folder, "skipped": stage.skipped, "manifest": stage.manifest}
        for name, stage in done.bundles.items()
    }
    failed = {name: error.exit_code for name, error in done.failures.items()}
    console.result({"output": options["output"], "weights": done.weights, "formats": told, "failed": failed})
    return next(iter(failed.values()), 0)


def _state(skipped: bool, dry_run: bool) -> str:
    return "unchanged, kept" if skipped else "would be written" if dry_run else "written"


def _suggest_bench(console: Console, checkpoint: Any, stages: list[Any]) -> None:
    """Name the verb that measures what our runtime runs."""
    lean = [stage.folder for stage in stages if "lean" in stage.manifest["result"]["bundle"].get("for", ["lean"])]
    if lean:
        console.next_verb("bench", checkpoint, *lean, "--data", "RECORDS", "--output", "RESULTS")


def _tell_readers(console: Console, manifest: Any) -> None:
    """Say who reads a bundle that is a checkpoint, and warn of servers that refuse it."""
    bundle = manifest["result"]["bundle"]
    readers = bundle.get("readers")
    if readers is None:
        return
    unknown = readers.get("unknown", [])
    if readers["read"] or not unknown:
        console.line(
            f"{bundle['format']} is read by {', '.join(readers['read']) or 'none of the engines that we know'}"
        )
    if unknown:
        what = f"a checkpoint of {bundle['family']} like this one"
        console.line(f"{bundle['format']}: whether {' and '.join(unknown)} read {what} was not asked")
    refusals: dict[tuple[str, str], list[str]] = {}
    for name, told in readers["refuse"].items():
        if told["server"]:
            refusals.setdefault((told["why"], told["hint"]), []).append(name)
    for (why, hint), names in refusals.items():
        console.note(f"warning: this bundle is refused by {', '.join(names)}: {why}")
        console.note(f"hint: {hint}")


def _row(manifest: Any) -> dict[str, object]:
    """A bundle's line in the table that is printed."""
    bundle = manifest["result"]["bundle"]
    parity = bundle["parity"]
    shown: dict[str, object] = {
        "format": bundle["format"],
        "family": bundle["family"],
        "precision": bundle["precision"],
        "vision": bundle["vision_precision"],
        "MB": sum(entry["size"] for entry in manifest["files"].values()) / 1e6,
    }
    if parity["check"] == "none":
        return shown | {"self-check": "none"}
    shown |= {
        "vision cosine": f"{parity['vision_mean_cosine']:.6f}",
        "logits max diff": parity["logits_max_abs_diff"],
        "KL": parity["mean_kl"],
        "tokens equal": parity["token_agreement"],
    }
    drift = parity.get("drift")
    if drift is not None:
        shown |= {"records": drift["records"], "records KL": drift["mean_kl"], "box IoU": drift["mean_iou"]}
    return shown
