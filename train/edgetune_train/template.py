"""The check that a checkpoint is trained on the prompt that its own chat template renders."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from edgetune_core.template import check_template
from edgetune_train.checkpoint import Checkpoint


def check_own_template(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose chat template is not its family's; one without a template has nothing to differ.

    Raises:
        InputError: the first place where the prompts differ.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    if not tokenizer.chat_template:
        return

    def render(turns: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    check_template(checkpoint.folder, render, checkpoint.family.chat)
