"""`edgetune merge`: a LoRA adapter folded into its base."""

from __future__ import annotations

from typing import Any

from edgetune.api.merge import MergeOptions, merge
from edgetune.commands._common import Console, verb


@verb(MergeOptions)
def command(console: Console, **options: Any) -> None:
    """Fold a LoRA adapter into its base and prove that it worked.

    The result has the base's tensor names and dtypes, and is refused if it does not answer as the adapter does.
    """
    stage = merge(**options)
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": stage.dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
    elif stage.dry_run:
        console.line(f"{stage.folder}: would merge {options['adapter']} into {options['checkpoint']}")
    else:
        result = stage.manifest["result"]
        proof = result["proof"]
        console.line(
            f"{stage.folder}: {result['changed_tensors']} tensors changed, {result['dtype']}; on "
            f"{proof['prompts']} prompts the adapter moves logits by {proof['effect']:.3g}, the merged one is off by "
            f"{proof['written_error']:.1%} of that and agrees on {proof['same_token']:.1%} of the next tokens"
        )
    if not stage.dry_run:
        console.next_verb("calibrate", "--checkpoint", stage.folder, "--data", "RECORDS", "--output", "WEIGHTS")
