"""Label Studio's protocol for ML backends: the phrases of a labelling config, and boxes as regions of its tasks.

Label Studio (1.23.2, `label_studio/ml/api_connector.py`) posts tasks with the project's config to /predict and takes
one prediction a task, in order. An entry without `result` is logged there and makes no prediction, so that one picture
that cannot be used does not cost the others of a request.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.parsers import expat

from edgetune_runtime.answer import Answer
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import excerpt
from edgetune_runtime.serve.detect import Answered
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.refusal import Refusal

CONFIG = "label_config"
"""Field of a request with the labelling config."""
CONTEXT = "params.context"
"""Field with what an annotator wrote into an open task."""
EVENTS = (
    *("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"),
    *("TASKS_CREATED", "TASKS_DELETED", "PROJECT_CREATED", "PROJECT_UPDATED", "PROJECT_DELETED"),
    *("LABEL_LINK_CREATED", "LABEL_LINK_UPDATED", "LABEL_LINK_DELETED", "START_TRAINING"),
)
"""Events by name (`label_studio/webhooks/models.py`)."""
ORIGINS = ("prediction", "prediction-changed", "manual")
"""Where an annotator's region comes from: kept as it was proposed, corrected, or drawn."""

Asking = Callable[[bytes, Sequence[str]], Awaitable[list[Answered]]]
"""Gives the answers to phrases about a picture."""
Opening = Callable[[str, str], Awaitable[bytes]]
"""Gives the file of a picture that a task refers to; the second argument is where the request has the reference."""


@dataclass(frozen=True)
class Label:
    """A label of a config.

    Attributes:
        name: as regions carry it: the alias, or else the value.
        words: what annotators may call it.
        phrases: that are asked for it.
    """

    name: str
    words: tuple[str, ...]
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Control:
    """A <RectangleLabels> of a config.

    Attributes:
        name: its own.
        image: name of the <Image> that it draws on.
        key: entry of a task's data with that picture.
        labels: that it has.
    """

    name: str
    image: str
    key: str
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Wanted:
    """A phrase that is asked about a control's picture, and the label of what is found."""

    control: Control
    label: str
    phrase: str


class Config:
    """A labelling config.

    Examples:
        >>> from edgetune_runtime.serve.label_studio import Config
        >>> config = Config(
        ...     '<View><Image name="photo" value="$image"/><RectangleLabels name="box" toName="photo">'
        ...     '<Label value="cup"/><Label value="jar" hint="the jar with a lid"/></RectangleLabels></View>'
        ... )
        >>> [(wanted.label, wanted.phrase) for wanted in config.wanted()]
        [('cup', 'cup'), ('jar', 'the jar with a lid')]

    Args:
        text: the config, which is XML.
        param: the field of the request that holds it.
        limits: of a request.

    Raises:
        Refusal: it is no XML, or boxes cannot be proposed for it.
    """

    def __init__(self, text: str, param: str = CONFIG, limits: Limits | None = None) -> None:
        self._param, self._limits = param, limits or Limits()
        images: dict[str, str] = {}
        found: list[tuple[dict[str, str], list[Label]]] = []
        for tag, attributes, control in _elements(text, param):
            if tag == "image":
                images[attributes.get("name", "")] = attributes.get("value", "")
            elif tag == "rectanglelabels":
                found.append((attributes, []))
            elif tag == "label" and control == "rectanglelabels" and found:
                found[-1][1].append(self._label(attributes))
        self.controls = tuple(self._control(attributes, labels, images) for attributes, labels in found)
        if not any(control.labels for control in self.controls):
            raise Refusal(
                400,
                "the labelling config has no RectangleLabels with a Label",
                hint='boxes are proposed for <RectangleLabels name="box" toName="image"><Label value="cup"/>',
                param=param,
            )
        if (count := len(self.wanted())) > self._limits.phrases:
            raise Refusal(400, f"the labels are {count} phrases, and {self._limits.phrases} are answered", param=param)
        for each in self.wanted():
            self._refuse_long(each.phrase, param)

    def wanted(self) -> list[Wanted]:
        """What is asked about a task: the phrases of all labels."""
        return [
            Wanted(control, label.name, phrase)
            for control in self.controls
            for label in control.labels
            for phrase in label.phrases
        ]

    def prompted(self, context: Any) -> list[Wanted]:
        """What is asked where an annotator wrote a prompt: that alone.

        Args:
            context: `params.context` of a request, which Label Studio sends when it asks for one open task.

        Raises:
            Refusal: it holds something else than a text, or no label fits that text.
        """
        if not context:
            return self.wanted()
        given = context.get("result") if isinstance(context, dict) else None
        items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
        boxes = [item.get("id") for item in items if item.get("type") != "textarea"]
        # A text of a region has that region's id, and is no prompt.
        prompts = [item for item in items if item.get("id") is None or item.get("id") not in boxes]
        texts = [(item.get("to_name"), text) for item in prompts for text in _texts(item)]
        if not texts:
            raise Refusal(
                400,
                "the context has no text to look for",
                hint="write it into a TextArea of the config; points and boxes that are drawn are not read",
                param=CONTEXT,
            )
        image, text = texts[-1]
        self._refuse_long(text, CONTEXT)
        controls = [control for control in self.controls if control.image == image and control.labels]
        if not controls:
            raise Refusal(400, f"no RectangleLabels draws on {excerpt(image)}", param=CONTEXT)
        control = controls[0]
        return [Wanted(control, self._named(control, text), text)]

    def _named(self, control: Control, text: str) -> str:
        """The label that a prompt names first, or the only one that there is."""
        places = [
            (match.start(), -len(word), label.name)
            for label in control.labels
            for word in label.words
            if (match := re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))
        ]
        if places:
            return min(places)[2]
        if len(control.labels) == 1:
            return control.labels[0].name
        names = ", ".join(label.name for label in control.labels)
        raise Refusal(
            400,
            f"the prompt {excerpt(text)} names none of the labels",
            hint=f"use one of these words in it: {names}",
            param=CONTEXT,
        )

    def _refuse_long(self, phrase: str, param: str) -> None:
        if len(phrase) > (most := self._limits.text_length):
            raise Refusal(400, f"a phrase has {len(phrase)} characters, and {most} are the most", param=param)

    def _label(self, attributes: Mapping[str, str]) -> Label:
        value = attributes.get("value", "").strip()
        name = attributes.get("alias", "").strip() or value
        if not name:
            raise Refusal(400, "a Label has no value", param=self._param)
        own = [phrase.strip() for phrase in attributes.get("predicted_values", "").split(",") if phrase.strip()]
        phrases = own or [attributes.get("hint", "").strip() or value or name]
        return Label(name, tuple(dict.fromkeys(word for word in (value, name) if word)), tuple(phrases))

    def _control(self, attributes: Mapping[str, str], labels: list[Label], images: Mapping[str, str]) -> Control:
        name, image = attributes.get("name", ""), attributes.get("toname", "")
        value = images.get(image, "")
        if not name or not re.fullmatch(r"\$[^$].*", value, re.DOTALL):
            raise Refusal(
                400,
                f"RectangleLabels {excerpt(name)} draws on {excerpt(image)}, which is no Image of one picture",
                hint='give <Image name="image" value="$image"/>, and RectangleLabels its name as toName',
                param=self._param,
            )
        return Control(name, image, value[1:], tuple(labels))


def _texts(item: Mapping[str, Any]) -> list[str]:
    """The texts of a text area in a context."""
    value = item.get("value")
    found = value.get("text") if item.get("type") == "textarea" and isinstance(value, dict) else None
    texts = found if isinstance(found, list) else [found]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _elements(text: str, param: str) -> Iterator[tuple[str, dict[str, str], str | None]]:
    """Each element of a config: its tag, its attributes, and the tag of the control that it is in.

    Names are in lower case, as Label Studio compares them. Entities, which can make a short text a long one, are
    refused.
    """
    found: list[tuple[str, dict[str, str], str | None]] = []
    controls: list[str | None] = [None]

    def start(tag: str, attributes: dict[str, str]) -> None:
        found.append((tag.lower(), {name.lower(): value for name, value in attributes.items()}, controls[-1]))
        controls.append(tag.lower() if "toName" in attributes else controls[-1])

    def refuse(*_: Any) -> None:
        raise Refusal(400, "the labelling config has a document type", hint="leave <!DOCTYPE ...> out", param=param)

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: controls.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)
    except (expat.ExpatError, ValueError) as error:  # ValueError: half a character
        raise Refusal(400, f"the labelling config is no XML: {error}", param=param) from error
    return iter(found)


def version(name: str, bundle: Bundle) -> str:
    """What predictions are told apart by: the bundle's name, and a digest that another export changes."""
    digest = hashlib.sha256(json.dumps(bundle.manifest, sort_keys=True, default=str).encode()).hexdigest()
    return f"{name}-{digest[:8]}"


async def predictions(
    body: Mapping[str, Any], config: Config, model_version: str, opening: Opening, asking: Asking
) -> list[dict[str, Any]]:
    """One entry for each task of a checked request: a prediction, or an error in its place.

    Raises:
        Refusal: none of the tasks can be answered; it is that of the first one.
    """
    context = (body.get("params") or {}).get("context")
    wanted, source = config.prompted(context), CONTEXT if context else CONFIG

    async def entry(number: int, task: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        try:
            found = await _prediction(f"tasks[{number}].data", task["data"], wanted, source, opening, asking)
        except Refusal as refusal:
            return refusal
        return found | {"model_version": model_version}

    entries = [await entry(number, task) for number, task in enumerate(body["tasks"])]
    refusals = [each for each in entries if isinstance(each, Refusal)]
    if len(refusals) == len(entries):
        raise refusals[0]
    return [each.to_dict() if isinstance(each, Refusal) else each for each in entries]


async def _prediction(
    place: str, data: Mapping[str, Any], wanted: Sequence[Wanted], source: str, opening: Opening, asking: Asking
) -> dict[str, Any]:
    """The boxes of one task's pictures, and how sure the model is of the least sure of them."""
    regions: list[dict[str, Any]] = []
    scores: list[float] = []
    for key in dict.fromkeys(each.control.key for each in wanted):
        reference, param = data.get(key), f"{place}.{key}"
        if not isinstance(reference, str):
            raise Refusal(400, f"the task's data has no picture {excerpt(key)}", param=param)
        picture = await opening(reference, param)
        asked = [each for each in wanted if each.control.key == key]
        try:
            answers = await asking(picture, [each.phrase for each in asked])
        except Refusal as refusal:
            if refusal.status == 400:  # else it is the queue's, and not of the picture or a phrase
                refusal.param = param if refusal.param == "image" else source
            raise
        for each, answered in zip(asked, answers, strict=True):
            answer = answered.answer
            assert isinstance(answer, Answer)
            found = [_region(each, detection.box, answered.image.size) for detection in answer.detections]
            told = [detection.score for detection in answer.detections]
            regions += [
                region if score is None else region | {"score": score}
                for region, score in zip(found, told, strict=True)
            ]
            scores += [score for score in told if score is not None]
            if answer.problem is not None:  # part of the text could not be read: nothing to rely on
                scores.append(0.0)
    return {"result": regions, "score": min(scores, default=None)}


def _region(wanted: Wanted, box: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """A box (xyxy, pixels of the upright picture) as Label Studio has it: in percent of that picture's size."""
    width, height = size
    x1, y1, x2, y2 = box
    percent = {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
    }
    return {
        "id": uuid.uuid4().hex[:10],
        "type": "rectanglelabels",
        "from_name": wanted.control.name,
        "to_name": wanted.control.image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": percent | {"rotation": 0, "rectanglelabels": [wanted.label]},
    }


def origins(event: Mapping[str, Any]) -> list[str]:
    """Where each region of new annotations comes from: one of `ORIGINS`, or "other"."""
    if event["action"] not in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED"):
        return []
    given = event.get("annotation")
    annotations = given if isinstance(given, list) else [given]
    results = [annotation.get("result") for annotation in annotations if isinstance(annotation, dict)]
    regions = [region for result in results if isinstance(result, list) for region in result]
    drawn = [region for region in regions if isinstance(region, dict) and region.get("type") == "rectanglelabels"]
    return [region["origin"] if region.get("origin") in ORIGINS else "other" for region in drawn]
