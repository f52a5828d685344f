"""`edgetune merge`: a LoRA adapter folded into its base."""

from __future__ import annotations

from typing import Any

from edgetune.api.merge import merge
from edgetune.commands._common import Console, verb


@verb(merge)
def command(console: Console, **options: Any) -> None:
    stage = merge(**options)
    if console.stage(stage, f"merge {options['adapter']} into {options['checkpoint']}"):
        proof = stage.result["proof"]
        console.line(
            f"{stage.folder}: {stage.result['changed_tensors']} tensors changed, {stage.result['dtype']}; on "
            f"{proof['prompts']} prompts the adapter moves logits by {proof['effect']:.3g}, the merged one is off by "
            f"{proof['written_error']:.1%} of that and agrees on {proof['same_token']:.1%} of the next tokens"
        )
    if not stage.dry_run:
        console.next_verb("calibrate", "--checkpoint", stage.folder, "--data", "RECORDS", "--output", "WEIGHTS")
