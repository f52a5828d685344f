"""Boxes that people write as text into conversations: found, and made places that every family writes in its own way.

As text, coordinates keep the frame that they were written in: pixels stay pixels for a model that counts to 1000, which
then learns shifted boxes without a complaint. Found are boxes under a key ("bbox_2d", "bbox", "box_2d"), between tags
(`<box>`, `<|box_start|>`), as PaliGemma's `<loc0123>` tokens, and lists of four numbers where boxes were asked for.
What an answer says is read by the codec's own reader; here is only told where its numbers stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from edgetune_data.formats.base import Value
from edgetune_data.frames import Frame, frame_of
from edgetune_data.settings import ReadSettings
from edgetune_runtime.codec import grammar
from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.families import all_families
from edgetune_runtime.json_file import decode_json
from edgetune_runtime.records.checks import FormError
from edgetune_runtime.records.dialogue import Dialogue
from edgetune_runtime.records.forms import Conversation, Parts
from edgetune_runtime.records.read import Record

TextFrame = Literal["pixels", "norm1000", "norm1", "padded1"]
TEXT_FRAMES: tuple[TextFrame, ...] = ("pixels", "norm1000", "norm1", "padded1")
"""Frames of written boxes: pixels of the upright picture, 0-1000 or 0-1 of its width and height, or 0-1 of the picture
padded to a centred square, as LLaVA's own data have them."""

REMARK = "records with boxes written as text, which stay text (--text-boxes says what frame they are in)"

_AS_JSON = BoxFormat("norm1000", "json")
_NUMBER = r"-?\d{1,9}(?:\.\d{1,9})?"
_FOUR = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
_PAIR = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_BOX = re.compile(
    r"(?:<\|object_ref_start\|>|<ref>)(?P<name>[^<>]{1,500})(?:<\|object_ref_end\|>|</ref>)"
    r"|(?P<open><\|box_start\|>|<box>)\s{0,8}(?:\[(?=\s{0,8}\[))?"
    r"|\]?(?P<close><\|box_end\|>|</box>)"
    r"|(?P<loc>(?:<loc\d{4}>){4})(?:[ \t]*(?P<what>[^;<\n]+))?"
    rf"|(?P<key>[\"'](?:bbox_2d|bbox|box_2d)[\"']\s*:\s*)?(?P<four>{_FOUR}|{_PAIR}\s*,\s*{_PAIR})"
)
_SIGNS = re.compile(r"[\[(]|<loc")
"""What every written box has; most texts have none of it."""
_ASKS = re.compile(
    r"\b(?:b?box(?:es)?|bounding|coordinates?|locate|detect|ground|where|region)\b|<ref>|<\|object_ref_start\|>",
    re.IGNORECASE,
)
"""Words of a question whose answer's bare lists of four numbers are boxes."""
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_LOC_STEPS = 1024


@dataclass(frozen=True)
class Written:
    """A box that stands in a text.

    Attributes:
        text: as it stands there.
        numbers: its corners, x first, in whatever frame they are written.
        by_token: PaliGemma's location tokens, whose frame is known.
    """

    text: str
    numbers: tuple[float, ...]
    by_token: bool = False


@dataclass
class _Said:
    """A turn with placeholders for what stood in it as text.

    Attributes:
        text: the turn's words with <bbox> and <ref-object>.
        boxes: what the <bbox> stand for.
        names: what the <ref-object> stand for.
    """

    text: str
    boxes: list[Written] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def written(entry: Record | Dialogue | Parts | Conversation) -> list[Written]:
    """Return the boxes that stand as text in a record or in the form of one."""
    if isinstance(entry, Dialogue | Conversation):
        turns = [
            (turn.role, "\ufffc".join(part for part in turn.parts if isinstance(part, str))) for turn in entry.turns
        ]
    elif entry.boxes is None:
        turns = [("user", entry.text), *(("assistant", answer) for answer in entry.answers)]
    else:
        return []
    return [box for said in _scan(turns) for box in said.boxes]


def refuse(records: Sequence[Record | Dialogue]) -> None:
    """Refuse to learn boxes that stand as text.

    Raises:
        InputError: the first record with one, and how many there are.
    """
    found = [(record, boxes[0]) for record in records if (boxes := written(record))]
    if found:
        record, box = found[0]
        raise InputError(
            f"{record.source}: the box {box.text} stands as text and would be learned in the frame that it is written "
            f"in, whatever the model's own is; so in {len(found)} of {len(records)} records",
            hint="edgetune data convert --text-boxes FRAME makes boxes of them; --allow-text-boxes learns them as text",
        )


def placed(value: Mapping[str, Any], frame: TextFrame, options: ReadSettings) -> Value:
    """Return a canonical record in which boxes that were text are places, in pixels of the upright picture.

    A question that is answered with boxes alone becomes one that can be scored, where the boxes or the question name
    what they are; other records stay conversations.

    Raises:
        FormError: it cannot be told which picture a box lies on, or a number does not belong to the frame.
        ImageError: the picture cannot be read.
    """
    turns = _turns(value)
    said = _scan(turns)
    boxes = [box for turn in said for box in turn.boxes]
    asked = turns[0][1].replace("<image>", "").strip() if len(turns) == 2 and turns[0][0] == "user" else None
    absent = asked is not None and turns[-1][1].strip() == "[]" and _ASKS.search(asked)
    if not boxes and not absent:
        return dict(value)
    image = _picture(value)
    names = [name for turn in said for name in turn.names]
    if asked is not None and not said[0].boxes and not said[0].names:
        said[-1].text, names = _alone(said[-1], names)
        names = names or _phrase(asked)
    images = value.get("images") or [image]
    messages = [
        {"role": role, "content": turn.text, **_loss(value, index)}
        for index, ((role, _), turn) in enumerate(zip(turns, said, strict=True))
    ]
    rest = {key: item for key, item in value.items() if key in ("id", "meta")}
    numbers = [_in_pixels(box, frame, frame_of(image, orientation=options.orientation)) for box in boxes]
    return {"messages": messages, "images": images, "objects": {"ref": names, "bbox": numbers}, **rest}


def decide(found: Iterable[tuple[Written, str]], options: ReadSettings) -> TextFrame:
    """Return the one frame that the boxes of a data set can be in.

    Args:
        found: every box with its picture.
        options: how the data set is read.

    Raises:
        InputError: several frames fit, or none does.
    """
    fitting: dict[TextFrame, int] = dict.fromkeys(TEXT_FRAMES, 0)
    total, example, square = 0, "", True
    for box, image in found:
        if box.by_token:
            continue
        try:
            picture = frame_of(image, orientation=options.orientation or "upright")
        except ImageError:
            continue  # told as an error of its record
        total, example, square = total + 1, example or box.text, square and picture.width == picture.height
        for name in fitting:
            fitting[name] += _fits(box.numbers, name, picture)
    frames: list[TextFrame] = [
        name for name in TEXT_FRAMES if fitting[name] == total and not (square and name == "padded1")
    ]
    if total and len(frames) != 1:
        fits = f"can be {' or '.join(frames)}" if frames else "fit in no frame"
        raise InputError(
            f"the {total} boxes written as text, such as {example}, {fits}: --text-boxes auto cannot tell",
            hint=_how_to_choose(frames),
        )
    return frames[0] if total else "norm1"


def _how_to_choose(frames: Sequence[str]) -> str:
    if frames:
        return f"look at one of them on its picture, then give --text-boxes {frames[0]} or {frames[-1]}"
    return "they are not corners, or of other pictures; --on-error report with a frame lists those that do not fit"


def _fits(numbers: Sequence[float], frame: str, picture: Frame) -> bool:
    """Whether corners make sense in a frame; what lies within one pixel is no box in pixels."""
    x1, y1, x2, y2 = numbers
    if not (0 <= x1 < x2 and 0 <= y1 < y2):
        return False
    shares = max(x2, y2) <= 1
    if frame == "norm1":
        return shares
    if frame == "padded1":
        left, top, right, bottom = _unpadded(numbers, picture)
        step = 0.005 * max(picture.width, picture.height)  # they are written with two decimals
        inside = left >= -step and top >= -step and right <= picture.width + step and bottom <= picture.height + step
        return shares and inside
    if frame == "norm1000":
        return not shares and max(x2, y2) <= 1000
    return not shares and x2 <= picture.width and y2 <= picture.height


def _in_pixels(box: Written, frame: TextFrame, picture: Frame) -> list[float]:
    """Return corners in pixels of the upright picture, from pixels or shares of the one that was annotated."""
    if box.by_token:
        return picture.upright([number / _LOC_STEPS for number in box.numbers], unit="norm1")
    if frame == "pixels":
        return picture.upright(box.numbers)
    whole = 1000 if frame == "norm1000" else 1
    if not all(0 <= number <= whole for number in box.numbers):
        raise FormError(f"the box {box.text} is not between 0 and {whole}, as --text-boxes {frame} says")
    if frame == "padded1":
        return picture.upright(_unpadded(box.numbers, picture))
    return picture.upright(box.numbers, unit=frame)


def _unpadded(numbers: Sequence[float], picture: Frame) -> list[float]:
    """Return pixels from shares of the picture padded to a centred square, the smaller half of the padding first."""
    side = max(picture.width, picture.height)
    padding = ((side - picture.width) // 2, (side - picture.height) // 2)
    return [number * side - padding[index % 2] for index, number in enumerate(numbers)]


# --- where the numbers stand -------------------------------------------------------------------------------


def _turns(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (role, text) of each turn of a canonical record; none where it is about boxes already, or malformed."""
    if "question" in value:
        answers = value.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(answers, list) or not all(isinstance(text, str) for text in (value["question"], *answers)):
            return []
        turns = [("user", value["question"]), *(("assistant", text) for text in answers)]
        if len(answers) == 1:
            return turns
        if any(said.boxes for said in _scan(turns)):
            raise FormError(f"{len(answers)} accepted answers with boxes written as text", hint="keep one of them")
        return []
    said = value.get("messages")
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        return []
    if not all(isinstance(turn.get("content"), str) for turn in said):
        return []
    return [(str(turn.get("role")), turn["content"]) for turn in said]


def _loss(value: Mapping[str, Any], index: int) -> dict[str, Any]:
    turns = value.get("messages")
    return {"loss": turns[index]["loss"]} if turns and "loss" in turns[index] else {}


def _picture(value: Mapping[str, Any]) -> str:
    images = [value["image"]] if "image" in value else value.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise FormError(f"'images' must be a list of paths, got {images!r}")
    if len(images) != 1:
        raise FormError(f"boxes written as text about {len(images)} pictures: they do not say which they lie on")
    objects = value.get("objects")
    if not isinstance(objects, dict | None) or any((objects or {}).values()):
        raise FormError("boxes written as text beside placeholders and 'objects'", hint="write all of them one way")
    return str(images[0])


def _scan(turns: Iterable[tuple[str, str]]) -> list[_Said]:
    """Return the turns with placeholders for what stood in them as text; as they are where no box did."""
    turns = list(turns)
    if not any(_SIGNS.search(text) for _, text in turns):
        return [_Said(text) for _, text in turns]
    said, asked = [], False
    for role, text in turns:
        if role == "user":
            asked = _ASKS.search(text) is not None
        said.append(_Said(text) if role == "system" else _read(text, bare=asked))
    return said if any(turn.boxes for turn in said) else [_Said(text) for _, text in turns]


def _read(text: str, *, bare: bool) -> _Said:
    """Return a turn with placeholders; `bare` says whether lists of four numbers without key or tag are boxes."""
    said, pieces, at, tagged = _Said(text), [], 0, False
    for match in _BOX.finditer(text):
        given = match.groupdict()
        if given["name"] is not None:
            said.names.append(given["name"].strip())
            replaced = "<ref-object>"
        elif given["open"] or given["close"]:
            tagged, replaced = bool(given["open"]), ""
        elif given["loc"]:
            y1, x1, y2, x2 = (float(step) for step in re.findall(r"\d{4}", given["loc"]))
            said.boxes.append(Written(given["loc"], (x1, y1, x2, y2), by_token=True))
            what = (given["what"] or "").strip()
            said.names += [what] if what else []
            replaced = "<ref-object><bbox>" if what else "<bbox>"
        elif given["key"] or tagged or bare:
            x1, y1, x2, y2 = (float(number) for number in re.findall(_NUMBER, given["four"]))
            key = given["key"] or ""
            if key[1:7] == "box_2d":  # Gemini's name and order
                (x1, y1, x2, y2), key = (y1, x1, y2, x2), key.replace("box_2d", "bbox_2d")
            said.boxes.append(Written(given["four"], (x1, y1, x2, y2)))
            replaced = f"{key}<bbox>"
        else:
            continue
        pieces += [text[at : match.start()], replaced]
        at = match.end()
    said.text = "".join([*pieces, text[at:]])
    return said


def _alone(said: _Said, names: list[str]) -> tuple[str, list[str]]:
    """Return an answer and its names: one of boxes alone as the codec's reader reads it, any other as it is."""
    body = _FENCE.sub(" ", said.text).strip()
    if body.count("<bbox>") != len(said.boxes):
        return said.text, names  # placeholders that were there before
    numbers = iter([json.dumps(box.numbers) for box in said.boxes])
    filled = re.sub("<bbox>", lambda _: next(numbers), body)
    try:
        decode_json(filled)
    except InputError:
        return said.text, names
    reading = grammar.read(filled, _AS_JSON)
    same = [box.numbers for box in reading.boxes] == [box.numbers for box in said.boxes]
    labels = [box.label for box in reading.boxes]
    if reading.problems or not reading.complete or not same or not all(labels):
        return said.text, names
    marks = ", ".join('{"bbox_2d": <bbox>, "label": "<ref-object>"}' for _ in labels)
    return f"[{marks}]", labels


@cache
def _requests() -> list[re.Pattern[str]]:
    """Requests in which the phrase can be told: Qwen's fine-tuning data, those of all families, PaliGemma's."""
    texts = (
        "Locate {phrase} in this image and output the bbox coordinates in JSON format.",
        *(family.ground_prompt for family in all_families()),
        "detect {phrase}",
    )
    return [
        re.compile(
            re.escape(text).replace(re.escape("{phrase}"), "(?P<phrase>.+?)") + r"\.?", re.IGNORECASE | re.DOTALL
        )
        for text in dict.fromkeys(texts)
    ]


def _phrase(asked: str) -> list[str]:
    """Return what a request asks for, where it is one that is known."""
    for request in _requests():
        if match := request.fullmatch(asked):
            return [match["phrase"].strip()]
    return []


def with_picture(value: Mapping[str, Any]) -> list[tuple[Written, str]]:
    """Return the boxes that stand as text in a canonical record, each with the picture it is about.

    Raises:
        FormError: as `placed`.
    """
    boxes = [box for said in _scan(_turns(value)) for box in said.boxes]
    return [(box, _picture(value)) for box in boxes]
