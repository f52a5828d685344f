"""`edgetune-run watch`: a bundle in front of a camera."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.loading import add_options, load_session
from edgetune_runtime.terminal import count, say

if TYPE_CHECKING:
    from edgetune_runtime.live.sinks import Sink
    from edgetune_runtime.session import Session

BUNDLE = "EDGETUNE_BUNDLE"
"""Variable with the folder of the bundle."""
_NEEDS = {
    "webhook": "when",
    "snapshots": "when",
    "moved_by": "when",
    "confirm": "when",
    "keep": "snapshots",
    "api_key": "http",
}
"""Options that mean nothing without another."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `edgetune-run watch`."""
    parser = argparse.ArgumentParser(
        prog="edgetune-run watch",
        description="Watch a camera, a stream, a video or a folder of pictures for what phrases name. Each line of the "
        "output is a JSON document with the boxes of one frame.",
        epilog="A line about what was seen, and how old it was, goes to stderr at the end.",
    )
    add = parser.add_argument
    source = "0 or /dev/video0, rtsp://…, a video file, a folder of pictures, or gst: and a GStreamer pipeline"
    add("source", metavar="SOURCE", help=source)
    add("phrases", nargs="+", metavar="PHRASE", help='what to find, such as "the red cup"')
    bundle = f"folder of the bundle (default: the environment variable {BUNDLE})"
    add("--bundle", type=Path, default=os.environ.get(BUNDLE), metavar="BUNDLE", help=bundle)

    reading = parser.add_argument_group("reading")
    add = reading.add_argument
    add("--size", type=_size, metavar="WxH", help="size of a local camera's pictures (default: the camera's own)")
    rate = "frames a second of a local camera, or of a folder of pictures (default: the camera's own; 1 for folders)"
    add("--rate", type=_positive, metavar="N", help=rate)
    add("--pixel-format", metavar="NAME", help="of a local camera, such as mjpeg (default: the camera's own)")
    transport = "of RTSP; udp loses packets, and is a little earlier (default: tcp)"
    add("--transport", choices=("tcp", "udp"), help=transport)
    timeout = "time that a stream may take to open, and may send nothing before it counts as lost (default: 3)"
    add("--timeout", type=_positive, default=3.0, metavar="SECONDS", help=timeout)
    add("--wait", action="store_true", help="wait for a source that is not there at first; one that is lost always is")
    realtime = (
        "play a video or a folder as a camera would have given it, and let frames go that the model is too slow for"
    )
    add("--realtime", action="store_true", help=realtime)

    answering = parser.add_argument_group("answering")
    add = answering.add_argument
    every = "least time from one answer's frame to the next one's (default: as often as the model can)"
    add("--every", type=_seconds, default=0.0, metavar="SECONDS", help=every)
    track = "carry boxes on between answers by optical flow: with auto where OpenCV is installed (default: auto)"
    add("--track", choices=("auto", "flow", "none"), default="auto", help=track)
    add("--max-new-tokens", type=count, default=128, metavar="N", help="longest answer, in tokens (default: 128)")
    add_options(answering)

    telling = parser.add_argument_group("telling")
    add = telling.add_argument
    when = "write a line for each event in the place of each frame: found, lost or moved, by commas"
    add("--when", type=_kinds, metavar="EVENTS", help=when)
    moved = "how far something moves before it has moved, as a share of the picture's diagonal (default: 0.1)"
    add("--moved-by", type=_positive, metavar="SHARE", help=moved)
    confirm = "answers in a row that have to agree that something is there, or gone (default: 1)"
    add("--confirm", type=count, metavar="N", help=confirm)
    add("--webhook", metavar="URL", help="post each event to this address")
    add("--snapshots", type=Path, metavar="DIR", help="keep a picture of each event in this folder")
    add("--keep", type=count, metavar="N", help="snapshots that are kept (default: 1000)")
    add("--mqtt", metavar="URL", help="publish to a broker: mqtt://[user@]host[:port]/topic")
    add("--video", type=Path, metavar="FILE", help="write frames with their boxes to this .mp4 or .mkv")
    add("--mcap", type=Path, metavar="FILE", help="write frames and boxes to this .mcap, which Foxglove opens")
    page = "show frames with their boxes at http://HOST:PORT/live, and serve the bundle there as `serve` does"
    add("--http", metavar="[HOST:]PORT", help=page)
    add("--api-key", action="append", default=[], metavar="KEY", help="key that requests to --http have to bring")
    add("--quiet", action="store_true", help="write no lines to stdout")
    return parser


def run(options: argparse.Namespace) -> None:
    """Watch until the source ends, SIGINT or SIGTERM.

    Raises:
        InputError: an option makes no sense.
        SourceError: the source cannot be opened.
        BundleError: the bundle does not load.
        MissingDependency: an extra is not installed.
    """
    from edgetune_runtime.live.events import Events
    from edgetune_runtime.live.sources import Paced, SourceOptions, source_of
    from edgetune_runtime.live.watch import Watcher

    if options.bundle is None:
        raise InputError("no bundle", hint=f"name its folder by --bundle, or in the variable {BUNDLE}")
    for name, needed in _NEEDS.items():
        if getattr(options, name) and not getattr(options, needed):
            flag, other = (f"--{each.replace('_', '-')}" for each in (name, needed))
            raise InputError(f"{flag} needs {other}", hint="see edgetune-run watch --help")
    asked = SourceOptions(
        size=options.size,
        rate=options.rate,
        pixel_format=options.pixel_format,
        transport=options.transport,
        timeout=options.timeout,
    )
    source = source_of(options.source, asked)
    for flag, wrong in (("--realtime", options.realtime and source.live), ("--wait", options.wait and not source.live)):
        if wrong:
            raise InputError(f"{source.name}: {flag} is not for this kind of source", hint="leave it out")
    if options.realtime:
        source = Paced(source)
    track = _tracks(options.track)
    with load_session(options.bundle, vars(options), cached_images=0) as session, ExitStack() as stack:
        watcher = Watcher(
            session,
            source,
            options.phrases,
            every=options.every,
            track=track,
            max_new_tokens=options.max_new_tokens,
            patient=options.wait,
            tell=_tell,
        )
        moved, confirm = options.moved_by or 0.1, options.confirm or 1
        events = Events(options.when, moved=moved, confirm=confirm) if options.when else None
        sinks = list(_sinks(options, session, stack))
        try:
            for observation in watcher:
                found = events.of(observation) if events else []
                for sink in sinks:
                    sink.write(observation)
                for event in found:
                    for sink in sinks:
                        sink.tell(event)
        finally:
            say(json.dumps({"watched": source.name, **watcher.figures.to_dict()}), error=True)


def _tell(words: str) -> None:
    say(f"note: {words}", error=True)


def _tracks(wanted: str) -> bool:
    """Whether boxes are to be tracked."""
    from edgetune_runtime.live.flow import load_opencv

    if wanted == "none":
        return False
    try:
        load_opencv()
    except MissingDependency as error:
        if wanted == "flow":
            raise
        _tell(f"boxes are not carried on between answers: {error} ({error.hint})")
        return False
    return True


def _sinks(options: argparse.Namespace, session: Session, stack: ExitStack) -> Iterator[Sink]:
    """What takes what is seen, closed with the stack."""
    from edgetune_runtime.live.sinks import Lines, Snapshots

    if options.http:  # which is closed last, for its viewers take their time
        try:
            from edgetune_runtime.live.sinks.page import Page
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"{error.name} is not installed", hint=install_command("serve", "edgetune-runtime")
            ) from error
        name = Path(options.bundle).resolve().name
        yield stack.enter_context(closing(Page(session, name, options.http, options.api_key)))
    if not options.quiet:
        yield Lines(events=bool(options.when))
    if options.snapshots:
        yield Snapshots(options.snapshots, keep=options.keep or 1000)
    if options.video:
        from edgetune_runtime.live.sinks.video import Video

        yield stack.enter_context(closing(Video(options.video)))
    if options.mcap:
        from edgetune_runtime.live.sinks.mcap import Mcap

        yield stack.enter_context(closing(Mcap(options.mcap)))
    if options.webhook:
        from edgetune_runtime.live.sinks.webhook import Webhook

        yield stack.enter_context(closing(Webhook(options.webhook, tell=_tell)))
    if options.mqtt:
        from edgetune_runtime.live.sinks.mqtt import Mqtt

        yield stack.enter_context(closing(Mqtt(options.mqtt, tell=_tell)))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    return count(width), count(height)


def _kinds(text: str) -> list[str]:
    from edgetune_runtime.live.events import Events

    kinds = [part.strip() for part in text.split(",")]
    try:
        Events(kinds)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error}: {error.hint}") from error
    return kinds


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not {text!r}")
    return value


def _positive(text: str) -> float:
    value = _seconds(text)
    if value == 0.0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value
