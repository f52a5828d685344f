"""Greedy answers of a checkpoint under transformers, as a bundle gives them: the most likely token at every step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetune_runtime.json_file import read_json

GENERATION_CONFIG = "generation_config.json"
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
"""What a checkpoint may say about generation without changing what is generated."""


def generate_greedily(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    stop: Sequence[int],
    pad: int,
    max_new_tokens: int,
    output_logits: bool = False,
) -> Any:
    """Return what `generate` of a model returns for its most likely tokens, whatever its checkpoint asks for.

    Published checkpoints ask for penalties and n-gram bans in their generation_config.json, and transformers applies
    them to greedy search too: it fills whatever a given configuration leaves open from the model's own.

    Args:
        model: a transformers model, with or without an adapter.
        inputs: keyword arguments of its forward.
        stop: ids of the tokens that end an answer.
        pad: id that fills up answers that end early.
        max_new_tokens: longest answer.
        output_logits: whether to return the logits [batch, vocabulary] of each step, too.

    Returns:
        transformers' output, with `sequences` [batch, prompt + new tokens] and, where asked for, `logits`.
    """
    from transformers import GenerationConfig

    # An adapter changes layers in place, so the model inside does all the work, and has the configuration that counts.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    search = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop),
        pad_token_id=pad,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=output_logits,
    )
    with _without_own_settings(inner):
        return inner.generate(**inputs, generation_config=search)


def forget_sampling(model: Any, *, stop: Sequence[int]) -> None:
    """Leave a model nothing of its checkpoint's generation settings, so that only a caller's settings hold."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=list(stop))


def copy_generation_config(source: Path, target: Path) -> None:
    """Copy a generation_config.json, without sampling settings: servers would apply them to a bundle's answers.

    A file that has none is copied as it is.

    Raises:
        InputError: it holds no JSON object.
    """
    values = read_json(source)
    kept = {key: value for key, value in values.items() if key in _KEPT or (key, value) == ("do_sample", False)}
    if kept == values:
        target.write_bytes(source.read_bytes())
    else:
        target.write_text(json.dumps(kept | {"do_sample": False}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
