"""`edgetune serve`: bundles behind an address; the same as `edgetune-run serve`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from edgetune.commands._common import Console, verb
from edgetune_core.options import Options, option
from edgetune_runtime.pixels import parse_area
from edgetune_runtime.serve.limits import Limits

LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Options):
    """What is served, where, and what of one request is too much."""

    bundles: tuple[str, ...] = option(
        help="Folders of bundles, each with the name that clients call it by where it is not the folder's.",
        argument=True,
        metavar="[NAME=]BUNDLE...",
    )
    host: str = option("127.0.0.1", help="Address to listen on; 0.0.0.0 is every network.")
    port: int = option(8000, help="Port to listen on; 0 takes a free one.", minimum=0)
    api_key: tuple[str, ...] = option((), help="Key that requests have to bring, also from EDGETUNE_API_KEY.")
    workers: int = option(1, help="Processes, each with a session of its own.", minimum=1)
    device: str = option("cpu", help="Device to compute on: cpu, cuda, or one of several GPUs such as cuda:1.")
    engine: str | None = option(
        None,
        help="Installed engine to use in place of the runtime's own for the format; vllm starts `vllm serve` for a "
        "checkpoint.",
    )
    engine_args: str = option("", help="Further words for `vllm serve`, in one argument.")
    threads: int | None = option(
        None, help="CPU threads of each session; by default the engine's own choice.", minimum=1
    )
    max_pixels: int | None = option(
        None,
        help="Largest area of a resized picture, such as 400k pixels, where less than a bundle's own is enough.",
        parse=parse_area,
        minimum=1,
    )
    verify: bool = option(True, help="Compare the bundles' files with their sha256 sums first.")
    prefix_cache_mb: int = option(
        0, help="Memory of each session in MB for what the decoder has read of earlier pictures.", minimum=0
    )
    allow_url: tuple[str, ...] = option((), help="Host from which pictures may be fetched by address.", metavar="HOST")
    label_studio: str | None = option(
        None,
        help="Label Studio whose pictures may be fetched, with the token in LABEL_STUDIO_API_KEY.",
        metavar="URL",
    )
    upstream: tuple[str, ...] = option(
        (),
        help="Answer by these running OpenAI-compatible engines, such as vLLM's, that hold the bundle's checkpoint.",
        metavar="URL[,URL]",
        commas=True,
    )
    upstream_model: str | None = option(
        None, help="What the engines call the model; by default the first that they list."
    )
    upstream_requests: int = option(32, help="Requests that are with the engines at a time.", minimum=1)
    queue: int = option(LIMITS.queue, help="Requests that may wait for a bundle.", minimum=1)
    max_body: int = option(LIMITS.body_bytes, help="Largest request in bytes.", minimum=1)
    max_image_pixels: int = option(LIMITS.image_pixels, help="Largest picture as it is sent, in pixels.", minimum=1)
    max_phrases: int = option(LIMITS.phrases, help="Phrases of one request.", minimum=1)
    max_new_tokens: int = option(
        LIMITS.new_tokens, help="Longest answer that a request may ask for, in tokens.", minimum=1
    )
    body_timeout: float = option(LIMITS.body_seconds, help="Seconds for a request to arrive.")
    access_log: bool = option(True, help="Write a line about each request to stderr.")


@verb(ServeOptions)
def command(console: Console, *, verify: bool, access_log: bool, **options: Any) -> None:
    """Serve bundles over HTTP: boxes, OpenAI's API, figures for Prometheus, and a page to try it on."""
    from edgetune_runtime.serve import command as serve

    serve.run(argparse.Namespace(no_verify=not verify, no_access_log=not access_log, **options))
