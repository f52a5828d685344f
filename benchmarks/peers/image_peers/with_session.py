"""edgetune's runtime: an int4 bundle as `edgetune export` writes it, one call for all phrases about a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from answering import Peer, Told, serve

from edgetune_runtime import Session


def load(settings: dict[str, Any]) -> Peer:
    """The session, and how it answers."""
    engine = "openvino" if settings["mode"] == "openvino" else None
    session = Session.load(settings["model"], threads=settings["threads"], engine=engine)

    def answer(picture: Path, words: list[str], tokens: int) -> Told:
        # Held to boxes, an answer would end where its box does, and forced tokens would cost nothing.
        answers = session.answer(picture, words, max_new_tokens=tokens, constrained=False)
        first = answers[0].timings
        return Told(
            [each.prompt_tokens for each in answers],
            [each.timings.tokens for each in answers],
            first.preprocess + first.vision + first.prefill,
            first.decode / (first.tokens - 1) if first.tokens > 1 else None,
        )

    packages = ("onnxruntime", "openvino") if engine else ("onnxruntime",)
    return Peer(answer, "Session.answer" + (", engine openvino" if engine else ""), packages, close=session.close)


if __name__ == "__main__":
    serve(load)
