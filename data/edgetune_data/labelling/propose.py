"""Asking a model about the pictures of a folder: a line of JSON for each, so that a killed run goes on after the last.

    {"image": "shelf/1.jpg", "width": 640, "height": 480, "sha256": "…", "phash": "…", "uncertainty": 0.41, "answers": [
     {"phrase": "cup", "status": "found", "uncertainty": 0.41, "boxes": [[…]], "scores": [0.59], "text": "…", …}, …]}

Only one picture is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from edgetune_core.overlap import perceptual_hash
from edgetune_data.labelling import uncertainty
from edgetune_runtime.answer import Answer, Runner
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.images.load import image_hash, load_image, upright_size
from edgetune_runtime.images.smart import check_aspect

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".mpo")
"""Endings of files that are taken for pictures; what has another one is left out."""
Entry = dict[str, Any]


def pictures_in(folder: Path) -> tuple[list[str], int]:
    """Return the pictures of a folder and of those in it, as sorted paths from there, and how many other files it has.

    Names that begin with a dot are passed over, as by a shell.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    seen = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    found = [name for name in seen if name.lower().endswith(PICTURES)]
    if not found:
        raise InputError(f"{folder}: no pictures", hint=f"their names end with one of {' '.join(PICTURES)}")
    return found, len(seen) - len(found)


def check_headers(folder: Path, names: Sequence[str]) -> None:
    """Look at every picture's header, so that a file that is none is told before a model is loaded.

    Raises:
        ImageError: the first that is no picture.
    """
    for name in tqdm(names, desc="read headers", unit="image", disable=None, delay=2, leave=False):
        upright_size(folder / name)


def propose(
    runner: Runner,
    folder: Path,
    names: Sequence[str],
    phrases: Sequence[str],
    output: Path,
    *,
    known: Collection[str] = (),
    on_error: Literal["stop", "report"] = "stop",
    max_new_tokens: int = 128,
) -> None:
    """Write a line for each picture, after those that an interrupted run has written.

    Args:
        runner: the model.
        folder: the folder of the pictures.
        names: their paths from there.
        phrases: what is looked for on each.
        output: the file of lines.
        known: sha256 of the pixels of pictures that are labelled: these are not asked about, and say so in their line.
        on_error: what becomes of a picture that cannot be read: an error, or a line that says why.
        max_new_tokens: longest answer.

    Raises:
        ImageError: a picture cannot be read, and none may be.
        InputError: a phrase cannot be asked for.
    """
    requests = [(phrase, runner.request(phrase)) for phrase in phrases]
    done = _finished(output)
    with output.open("a", encoding="utf-8") as stream:
        bar = tqdm(names, desc="propose", unit="image", disable=None, delay=2, leave=False)
        for name in bar:
            if name in done:
                continue
            try:
                entry = _entry(runner, folder / name, requests, known, max_new_tokens)
            except ImageError as error:
                if on_error == "stop":
                    raise
                entry = {"problem": str(error)}
            stream.write(json.dumps({"image": name, **entry}, ensure_ascii=False) + "\n")
            stream.flush()


def _finished(output: Path) -> set[str]:
    """Return the pictures that a file has lines of; half a line, where a run was killed, is cut off."""
    if not output.is_file():
        return set()
    found, whole = set(), 0
    with output.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            found.add(json.loads(line)["image"])
            whole += len(line)
        stream.truncate(whole)
    return found


def _entry(
    runner: Runner, path: Path, requests: Sequence[tuple[str, str]], known: Collection[str], max_new_tokens: int
) -> Entry:
    image = load_image(path)
    check_aspect(*image.size)
    sha256 = image_hash(image)
    facts: Entry = {"width": image.width, "height": image.height, "sha256": sha256}
    facts["phash"] = perceptual_hash(image).tobytes().hex()
    if sha256 in known:
        return {**facts, "labelled": True}
    answers = [
        _answer(phrase, runner.answer(image, words, max_new_tokens=max_new_tokens)) for phrase, words in requests
    ]
    unsure = uncertainty.of_picture(answer["uncertainty"] for answer in answers)
    return {**facts, "uncertainty": unsure, "answers": answers}


def _answer(phrase: str, answer: Answer) -> Entry:
    return {
        "phrase": phrase,
        "status": answer.status,
        "uncertainty": round(uncertainty.of_answer(answer), 6),
        "boxes": [[round(side, 3) for side in found.box] for found in answer.detections],
        "scores": [None if found.score is None else round(found.score, 6) for found in answer.detections],
        "text": answer.text,
        "problem": answer.problem,
    }


def lines_of(path: Path) -> Iterator[tuple[int, Entry]]:
    """Yield the lines of a file of proposals, each with the byte that it starts at."""
    place = 0
    with path.open("rb") as stream:
        for line in stream:
            yield place, json.loads(line)
            place += len(line)
