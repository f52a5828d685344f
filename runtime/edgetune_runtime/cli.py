"""`edgetune-run`: a bundle, a picture and a phrase in; boxes, and a picture with boxes drawn, out."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_runtime import __version__
from edgetune_runtime.errors import EdgetuneError, InputError
from edgetune_runtime.loading import add_options, load_session
from edgetune_runtime.signals import Terminated, sigterm_raises
from edgetune_runtime.terminal import drop, finish, prepare, report, say

if TYPE_CHECKING:
    from edgetune_runtime.answer import Answer, Runner
    from edgetune_runtime.timing import Timings

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What the names of drawn pictures end in."""
VERBS = {
    "bench": "edgetune_runtime.bench.command",
    "build-engine": "edgetune_runtime.backends.trt.build_engine",
    "serve": "edgetune_runtime.serve.command",
    "watch": "edgetune_runtime.live.command",
}
"""First words that are not a bundle: modules with `build_parser()` and `run(options)`. A folder of such a name is
./NAME."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `edgetune-run`."""
    parser = argparse.ArgumentParser(
        prog="edgetune-run",
        description="Find what a phrase names in a picture, or ask about it, with a bundle from `edgetune export`.",
    )
    parser.epilog = f"Other verbs, each with its own --help: {', '.join(VERBS)}."
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("phrases", nargs="+", metavar="PHRASE", help='what to find, such as "the left clock"')
    parser.add_argument("--ask", action="store_true", help="take each PHRASE as a question and answer in words")
    parser.add_argument("--free", action="store_true", help="let the model write anything, not boxes alone")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the picture with the boxes drawn to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer, in tokens (default: 128, with --ask 256)"
    )
    add_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return the exit code.

    0 done, 1 a row of `bench` failed, 2 bad input, 3 something is not installed or the disk is full, 130 Ctrl-C,
    143 SIGTERM.
    """
    if arguments is None:  # this is the program, and not a call
        prepare()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser, action = build_parser(), run
    if words and words[0] in VERBS:
        module = import_module(VERBS[words.pop(0)])
        parser, action = module.build_parser(), module.run
    options = parser.parse_args(words)
    try:
        with sigterm_raises():
            action(options)
    except EdgetuneError as error:
        return _fail(str(error), error.hint, error.exit_code)
    except Terminated as end:
        return _fail("ended by SIGTERM", None, end.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", None, 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{where}no space left on the disk", "choose another place for the output", 3)
        if error.errno == errno.EPIPE:
            drop(sys.stdout)  # the reader left; nothing more can be written
            return 1
        return _fail(f"{where}{error.strerror or error}", None, 2)
    return finish(0)


def run(options: argparse.Namespace, load: Callable[[argparse.Namespace], Runner] | None = None) -> None:
    """Answer every phrase and write what was asked for; raises what `Session` raises.

    Args:
        options: of `build_parser`.
        load: makes what answers in a session's place.
    """
    from edgetune_runtime.images.load import load_image
    from edgetune_runtime.session import Session

    if options.out is not None:
        check_picture(options.out, asking=options.ask, source=Path(options.image))
    image = load_image(options.image)
    session = load_session(options.bundle, vars(options)) if load is None else load(options)
    limit = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    # A checkpoint's answers are free in any case.
    held: Any = {"constrained": False} if options.free and isinstance(session, Session) else {}
    rows, found = [], []
    for phrase in options.phrases:
        row: dict[str, Any]
        timings: Timings | None
        if options.ask:
            stream = session.stream(image, phrase, **limit)
            row, timings = {"question": phrase, "answer": "".join(stream).strip()}, stream.timings
        else:
            answer = session.answer(image, session.request(phrase), **limit, **held)
            found += answer.detections
            row, timings = {"phrase": phrase, **_boxes(answer)}, answer.timings
        assert timings is not None
        row["timings"] = timings.to_dict()
        rows.append(row)
        if not options.json:
            say("\n".join(describe(row)))
    if options.out is not None:
        from edgetune_runtime.draw import draw_detections

        with naming(options.out):
            draw_detections(image, found).save(options.out)
    if options.json:
        told = {"image": options.image, "width": image.width, "height": image.height, "results": rows}
        say(json.dumps(told, indent=2))


def _boxes(answer: Answer) -> dict[str, Any]:
    return {
        "detections": [{"label": item.label, "box": list(item.box), "score": item.score} for item in answer.detections],
        "status": answer.status,
        "problem": answer.problem,
        "text": answer.text,
    }


def describe(row: dict[str, Any]) -> list[str]:
    """The lines that a person reads about one phrase or question."""
    timings = row["timings"]
    cost = (
        f"  {timings['total'] * 1000:.0f} ms: vision {timings['vision'] * 1000:.0f}, "
        f"prefill {timings['prefill'] * 1000:.0f}, decode {timings['decode'] * 1000:.0f} ({timings['tokens']} tokens)"
    )
    if "question" in row:
        return [f"{row['question']}", f"  {row['answer']}", cost]
    if row["problem"]:
        lines = [f"  could not read the whole answer: {row['problem']}"]
    else:
        lines = [] if row["detections"] else ["  not there"]
    for item in row["detections"]:
        x1, y1, x2, y2 = item["box"]
        lines.append(f"  {item['label']}: x {x1:.0f} to {x2:.0f}, y {y1:.0f} to {y2:.0f}")
    return [row["phrase"], *lines, cost]


def check_picture(path: Path, *, asking: bool, source: Path) -> None:
    """Refuse an output picture that could not be written, or that would replace its source, before any work is done.

    Raises:
        InputError: questions give no boxes to draw, the folder is missing, the format is none of `PICTURES`, or the
            file is the source.
    """
    if asking:
        raise InputError("answers in words have no boxes to draw", hint="leave out --out or --ask")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder")
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path}: cannot write this kind of picture", hint=f"end the name in {', '.join(PICTURES)}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder", hint="--out names the picture to write")
    if path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path}: is the picture that is asked about", hint="choose another --out; it stays as it is")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that was being written in whatever Pillow raises, whose streams do not know it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise InputError(f"{path}: cannot be written: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    except ValueError as error:  # more pixels than the format can hold
        raise InputError(f"{path}: cannot be written: {error}") from error


def _fail(message: str, hint: str | None, code: int) -> int:
    report(message, hint)
    return finish(code)


if __name__ == "__main__":
    sys.exit(main())
