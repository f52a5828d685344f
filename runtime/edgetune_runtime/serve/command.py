"""`edgetune-run serve`: bundles behind an address."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, EdgetuneError, InputError, MissingDependency, install_command
from edgetune_runtime.loading import ENGINE, add_options, load_session
from edgetune_runtime.serve.label_studio_files import KEY as LABEL_STUDIO_KEY
from edgetune_runtime.serve.label_studio_files import LabelStudioFiles
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.terminal import count, report, say

if TYPE_CHECKING:
    from edgetune_runtime.serve.model import Answering

CONFIG = "EDGETUNE_SERVE"
"""Variable by which a worker process learns what to serve."""
KEY = "EDGETUNE_API_KEY"
"""Variable with the API key: other users of a machine see a command's arguments."""
UPSTREAM_KEY = "EDGETUNE_UPSTREAM_KEY"
"""Variable with the API key of engines that are asked in a session's place."""
VLLM = "vllm"
"""The engine that is a program of its own, started here."""
DRAIN_SECONDS = 30
"""How long requests that are being answered may take once the server was told to end."""
UVICORN: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_graceful_shutdown": DRAIN_SECONDS,
    "timeout_keep_alive": 10,
    # Reading a large vocabulary keeps a worker from answering for a moment; one that dies is noticed after this long.
    "timeout_worker_healthcheck": 15,
    "limit_concurrency": 1000,
    "lifespan": "on",
}
"""Settings of the HTTP server."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `edgetune-run serve`."""
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="edgetune-run serve",
        description="Serve bundles over HTTP: boxes as an API, an OpenAI-compatible API, figures for Prometheus, and a "
        "page to try it on.",
        epilog=f"The API key may stand in the environment variable {KEY}.",
    )
    add = parser.add_argument
    add("bundles", nargs="+", metavar="[NAME=]BUNDLE", help="folder of a bundle, and the name that clients call it by")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every network (default: %(default)s)")
    add(
        "--port",
        type=int,
        default=8000,
        metavar="N",
        help="port to listen on; 0 takes a free one (default: %(default)s)",
    )
    add(
        "--api-key", action="append", default=[], metavar="KEY", help="key that requests have to bring; may be repeated"
    )
    add("--workers", type=count, default=1, metavar="N", help="processes, each with a session of its own (default: 1)")
    add_options(parser, engine=f"{ENGINE}; vllm starts `vllm serve` for a checkpoint")
    add("--engine-args", default="", metavar="WORDS", help="further words for `vllm serve`, in one argument")
    prefixes = "memory of each session for what the decoder has read of earlier pictures (default: %(default)s)"
    add("--prefix-cache-mb", type=int, default=0, metavar="MB", help=prefixes)
    host = "host from which pictures may be fetched by address; may be repeated (default: none)"
    add("--allow-url", action="append", default=[], metavar="HOST", help=host)
    studio = f"Label Studio whose pictures may be fetched, with the token in {LABEL_STUDIO_KEY} (default: none)"
    add("--label-studio", metavar="URL", help=studio)
    engines = "answer by these running OpenAI-compatible engines, such as vLLM's, that hold the bundle's checkpoint"
    add("--upstream", type=_addresses, default=[], metavar="URL[,URL]", help=engines)
    name = "what the engines call the model (default: the first that they list)"
    add("--upstream-model", metavar="NAME", help=name)
    at_a_time = "requests that are with the engines at a time (default: %(default)s)"
    add("--upstream-requests", type=count, default=32, metavar="N", help=at_a_time)
    add(
        "--queue",
        type=count,
        default=limits.queue,
        metavar="N",
        help="requests that may wait for a bundle (default: %(default)s)",
    )
    size = "largest request in bytes (default: %(default)s)"
    add("--max-body", type=count, default=limits.body_bytes, metavar="N", help=size)
    pixels = "largest picture as it is sent, in pixels (default: %(default)s)"
    add("--max-image-pixels", type=count, default=limits.image_pixels, metavar="N", help=pixels)
    add(
        "--max-phrases",
        type=count,
        default=limits.phrases,
        metavar="N",
        help="phrases of one request (default: %(default)s)",
    )
    longest = "longest answer that a request may ask for, in tokens (default: %(default)s)"
    add("--max-new-tokens", type=count, default=limits.new_tokens, metavar="N", help=longest)
    add(
        "--body-timeout",
        type=float,
        default=limits.body_seconds,
        metavar="SECONDS",
        help="time for a request to arrive (default: %(default)s)",
    )
    add("--no-access-log", action="store_true", help="write no line about each request to stderr")
    return parser


def run(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; requests that are being answered then are answered to their end.

    Raises:
        InputError: an option makes no sense, or the address is in use.
        BundleError: a bundle does not load.
        MissingDependency: the extra [serve] or an engine is not installed.
    """
    try:
        import uvicorn

        from edgetune_runtime.serve.app import names_of
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name} is not installed", hint=install_command("serve", "edgetune-runtime")
        ) from error
    if len(names_of(options.bundles)) > 1 and (options.upstream or options.engine == VLLM):
        raise InputError("engines elsewhere answer for one bundle", hint="start a server for each")
    if options.upstream and options.engine:
        raise InputError("--upstream and --engine exclude each other", hint="the engines at the addresses are running")
    keys = api_keys(options.api_key)
    studio_key = os.environ.get(LABEL_STUDIO_KEY, "").strip() or None
    if options.label_studio is not None:
        LabelStudioFiles(options.label_studio, studio_key, options.max_body)
    for folder in names_of(options.bundles).values():
        Bundle.load(folder, verify=False)
    with listen(options.host, options.port) as listening, _engine(options) as upstream:
        told = vars(options) | {"api_key": keys, "label_studio_key": studio_key} | upstream
        address = url_of(options.host, listening)
        if options.workers > 1:
            _serve_in_workers(told, address, listening)
            return
        server = uvicorn.Server(uvicorn.Config(_app(told), **UVICORN))
        _say_ready(address, told)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn raises again, after all was answered, what it was ended by
            say("ended", error=True)


def api_keys(given: Sequence[str]) -> list[str]:
    """The API keys of a command line and of the environment.

    Raises:
        InputError: one is none that a request could bring.
    """
    keys = [key.strip() for key in (*given, *([os.environ[KEY]] if KEY in os.environ else []))]
    if not all(key and key.isascii() and key.isprintable() for key in keys):
        raise InputError("an API key is one or more printable ASCII characters", hint=f"see --api-key and {KEY}")
    return keys


def address_of(place: str) -> tuple[str, int]:
    """The host and the port of [HOST:]PORT; without a host, this machine alone.

    Raises:
        InputError: it is none.
    """
    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        raise InputError(f"{place}: no port", hint="such as 8000, or 0.0.0.0:8000 for every network")
    return host.strip("[]") or "127.0.0.1", int(port)


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Addresses of the engines that answer in a session's place, and their key; vLLM is started if asked for."""
    from edgetune_runtime.serve.app import names_of
    from edgetune_runtime.serve.vllm import Vllm

    if options.engine != VLLM:
        yield {"upstream": options.upstream, "upstream_key": os.environ.get(UPSTREAM_KEY, "").strip() or None}
        return
    ((name, folder),) = names_of(options.bundles).items()
    with Vllm(Bundle.load(folder, verify=not options.no_verify), name, shlex.split(options.engine_args)) as engine:
        yield {"upstream": [engine.url], "upstream_key": engine.key}


def _serve_in_workers(told: dict[str, Any], address: str, listening: socket.socket) -> None:
    """Serve with processes that share the address, and leave their figures where each of them finds all."""
    import uvicorn
    import uvicorn.supervisors
    from uvicorn.config import STARTUP_FAILURE

    with tempfile.TemporaryDirectory() as figures:
        os.environ[CONFIG] = json.dumps(told, default=str)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = figures
        _say_ready(address, told)
        place = "edgetune_runtime.serve.command:worker"
        shape = uvicorn.Config(place, factory=True, workers=told["workers"], **UVICORN)
        supervisor = uvicorn.supervisors.Multiprocess(shape, sockets=[listening])
        supervisor.run()
        if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
            raise BundleError("a worker could not start, see above")


def worker() -> Any:
    """The application of a worker process.

    Raises:
        SystemExit: it cannot be made; others are not started in the place of this one.
    """
    from uvicorn.config import STARTUP_FAILURE

    try:
        return _app(json.loads(os.environ[CONFIG]))
    except EdgetuneError as error:
        report(str(error), error.hint)
        raise SystemExit(STARTUP_FAILURE) from error


def _app(told: dict[str, Any]) -> Any:
    """Load the bundles and put the application in front of them."""
    from edgetune_runtime.serve.app import Settings, build_app, names_of
    from edgetune_runtime.serve.guard import log_line

    sessions = {name: _session(folder, told) for name, folder in names_of(told["bundles"]).items()}
    limits = Limits(
        body_bytes=told["max_body"],
        body_seconds=told["body_timeout"],
        image_pixels=told["max_image_pixels"],
        phrases=told["max_phrases"],
        new_tokens=told["max_new_tokens"],
        queue=told["queue"],
    )
    log = None if told["no_access_log"] else log_line
    settings = Settings(
        limits=limits,
        keys=told["api_key"],
        hosts=told["allow_url"],
        label_studio=told["label_studio"],
        label_studio_key=told["label_studio_key"],
        log=log,
        at_a_time=told["upstream_requests"] if told["upstream"] else 1,
    )
    return build_app(sessions, settings)


def _session(folder: Path, told: dict[str, Any]) -> Answering:
    """What answers for one bundle."""
    from edgetune_runtime.serve.upstream import Engine, UpstreamSession

    if told["upstream"]:
        engines = [Engine(url, told["upstream_key"], told["upstream_model"]) for url in told["upstream"]]
        return UpstreamSession(Bundle.load(folder, verify=not told["no_verify"]), engines)
    return load_session(folder, told, prefix_cache_mb=told["prefix_cache_mb"])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the address is in use, or none of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"port must be from 0 to 65535, not {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)  # who comes from now on waits until workers have loaded
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="choose another --port or --host"
        ) from error
    listening.set_inheritable(True)
    return listening


def _say_ready(address: str, told: dict[str, Any]) -> None:
    """Tell where it is, and that everybody may come in."""
    from edgetune_runtime.serve.app import names_of

    say(f"serving {', '.join(names_of(told['bundles']))} at {address} (page /, API /docs, figures /metrics)")
    warn_of_strangers(told["host"], told["api_key"], "ask")


def url_of(host: str, listening: socket.socket) -> str:
    """The address of a server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def warn_of_strangers(host: str, keys: Sequence[str], may: str) -> None:
    """Say that everybody may come in, where there is no key and others reach the host."""
    if not keys and host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: everybody who reaches this address may {may}: set an --api-key", error=True)


def _addresses(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
