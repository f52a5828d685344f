"""How a worker of `image_to_box.py` is asked and answers: imported by the workers, each in an environment of its own.

    python WORKER.py '{"model": FOLDER, "threads": 2, "chat": {"prefix": ..., "before_image": ..., ...}, ...}'

The worker loads the model and prints {"versions": {package: version}, "how": text, "pids": [processes that compute]}.
Then for each line of standard input, {"picture": file, "words": [the user's whole words of each phrase], "tokens": N},
it prints what `Told` holds, or {"error": text} where it failed. Imports nothing of ours, and nothing but Python's own.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO


@dataclass
class Told:
    """What an answer to all phrases about a picture took.

    Attributes:
        prompt_tokens: of each phrase's prompt, the picture's included, as the peer counts them.
        tokens: of each phrase's answer.
        first_s: seconds from the picture to the first phrase's first token, or None where the peer does not tell.
        token_s: seconds a further token, where the peer tells: of all phrases together where it decodes them as one.
        ids: of the first phrase's answer, where the peer tells.
    """

    prompt_tokens: list[int]
    tokens: list[int]
    first_s: float | None = None
    token_s: float | None = None
    ids: list[int] = field(default_factory=list)


@dataclass
class Peer:
    """A loaded model.

    Attributes:
        answer: answers all phrases about a picture: its file, their words, and how many tokens each.
        how: a few words on what it computes with.
        packages: those whose versions matter.
        pids: of the processes that compute, where that is not this one.
    """

    answer: Callable[[Path, list[str], int], Told]
    how: str
    packages: Sequence[str] = ()
    pids: Sequence[int] = ()
    close: Callable[[], None] = lambda: None


def prompt(chat: dict[str, str], words: str, image: str | None = None) -> str:
    """The whole prompt of a phrase, with one image token, or with `image` in place of the picture and its marks."""
    if image is None:
        image = chat["before_image"] + chat["image_token"] + chat["after_image"]
    return chat["prefix"] + image + words + chat["suffix"]


def since(times: Iterable[float], began: float) -> tuple[float, float | None]:
    """Seconds to the first of these moments, and between one and the next, where there are two."""
    moments = list(times)
    steps = len(moments) - 1
    return moments[0] - began, (moments[-1] - moments[0]) / steps if steps else None


def serve(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Load what the command line says and answer each line of standard input."""
    lines = _own_output()
    peer = load(json.loads(sys.argv[1]))
    versions = {name: version(name) for name in peer.packages}
    _say(lines, {"versions": versions, "how": peer.how, "pids": list(peer.pids) or [os.getpid()]})
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            began = time.perf_counter()
            try:
                told = asdict(peer.answer(Path(asked["picture"]), asked["words"], asked["tokens"]))
                _say(lines, told | {"seconds": time.perf_counter() - began})
            except Exception as error:  # whatever an engine raises is its answer
                traceback.print_exc()
                _say(lines, {"error": f"{type(error).__name__}: {error}"})
    finally:
        peer.close()


def _own_output() -> TextIO:
    """The real standard output; what a library prints there goes to standard error from now on."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _say(lines: TextIO, what: dict[str, Any]) -> None:
    print(json.dumps(what), file=lines, flush=True)
