"""Whether a checkpoint's own chat template says what its family's prompt pieces say.

A default system prompt that differs, a missing line break or another end of turn moves every answer a little; a model
trained on one prompt and served with the other is worse for no visible reason.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Chat
from edgetune_runtime.json_file import read_json

_PROBES = ("Locate the left clock and output its bbox coordinates in JSON format.", "1 < 2 {phrase} é\n\nok?")


Render = Callable[[list[dict[str, Any]]], str]
"""Turns, whose contents are lists of parts, as a prompt with the opening of an answer behind them."""

_SECONDS = 20
_BYTES = 1 << 30


def own_template(folder: Path) -> Render:
    """Return how a checkpoint's own chat template renders, within a limit of time and memory.

    transformers renders in a sandbox that runs no code, but a template can still ask for gigabytes or for ever.

    Raises:
        InputError: the tokenizer cannot be loaded, or the checkpoint has no template; or, when it renders, the template
            is broken or asks for too much.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers meets in tokenizer_config.json and the files of templates
        raise InputError(f"{folder}: transformers cannot load the tokenizer: {str(error)[:300]}") from error
    if tokenizer.chat_template is None and (folder / "chat_template.json").is_file():
        tokenizer.chat_template = read_json(folder / "chat_template.json").get("chat_template")
    if not tokenizer.chat_template:
        raise InputError(
            f"{folder}: the tokenizer has no chat template", hint="copy chat_template.jinja from the base model"
        )

    def render(turns: list[dict[str, Any]]) -> str:
        # Templates with a switch for thinking aloud differ in what they do without it.
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return str(tokenizer.apply_chat_template(turns, **options))

    return lambda turns: _bounded(folder, render, turns)


def _bounded(folder: Path, render: Render, turns: list[dict[str, Any]]) -> str:
    """Render in a process of its own, which may take so much time and memory and no more."""
    context = multiprocessing.get_context("fork")  # only text is touched there, and a fresh interpreter takes seconds
    here, there = context.Pipe(duplex=False)

    def work() -> None:
        grown = _BYTES + 1024 * int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() // 1024
        resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
        try:
            there.send((render(turns), None))
        except BaseException as error:  # of jinja and of what the template does: whatever it is, the template is wrong
            there.send((None, f"{type(error).__name__}: {str(error)[:200]}"))

    process = context.Process(target=work, daemon=True)
    process.start()
    there.close()
    problem: str | None = f"it takes more than {_SECONDS} s"
    text: str | None = None
    try:
        if here.poll(_SECONDS):
            text, problem = here.recv()
    except EOFError:
        problem = f"it takes more than {_BYTES >> 30} GiB of memory"
    finally:
        process.kill()
        process.join()
    if text is None:
        raise InputError(
            f"{folder}: the chat template cannot be rendered: {problem}",
            hint="use the chat template of the family's published checkpoints",
        )
    return text


def check_template(where: object, render: Render, chat: Chat) -> None:
    """Refuse a chat template that renders another prompt than the family's pieces.

    Args:
        where: the checkpoint, for the message.
        render: renders turns, whose contents are lists of parts, with the opening of an answer behind them.
        chat: the family's pieces.

    Raises:
        InputError: the first place where the two differ.
    """
    for text in _PROBES:
        rendered = render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}])
        expected = chat.render(text, 1)
        if rendered != expected:
            start = next((i for i, (a, b) in enumerate(zip(rendered, expected, strict=False)) if a != b), None)
            start = min(len(rendered), len(expected)) if start is None else start
            raise InputError(
                f"{where}: the chat template renders {rendered[start : start + 40]!r} where the family's prompt has "
                f"{expected[start : start + 40]!r}",
                hint="use the chat template of the family's published checkpoints",
            )
