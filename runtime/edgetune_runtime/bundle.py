"""A bundle: the folder that export writes and the runtime loads, self-describing and relocatable.

Everything that inference needs beyond the weights is in `manifest.json` under `result.bundle`: no code
of the model, no configuration class and no template engine is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from edgetune_runtime.chat import Chat
from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.constrained.automaton import Automaton
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.rules import bounded, rule_from_dict
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.manifest import MANIFEST, read_manifest, refuse_unlisted, verify_files

SCHEMA = 2
"""Of `result.bundle`. Bundles of schema 1 left boxes, refusals and module names to a registry in the runtime."""
PURPOSES = ("lean", "server")
"""What a bundle may be for; a format that is no checkpoint says nothing, and is lean."""
PHRASE = "{phrase}"
"""Where the phrase stands in a bundle's request for a box."""

_PRECISIONS = ("fp32", "fp16", "int8", "int4", "int3")
_MODEL = ("layers", "hidden", "kv_heads", "head_dim", "vocabulary")
_MOST = 1 << 24
"""Over every count of tokens, layers and channels of a real model."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base `theta`, the split of the head's half among (time, height, width), and its layout.

    Where positions are the tokens' own and nothing else, all of it is time's. The first `rotary_dim` dimensions of a
    head turn.
    """

    theta: float
    mrope_section: tuple[int, ...]
    interleaved: bool
    head_dim: int
    rotary_dim: int


@dataclass(frozen=True)
class Limits:
    """What the bundle was made for, in tokens: the whole sequence, and one image's share of it."""

    max_length: int
    max_image_tokens: int


@dataclass(frozen=True)
class Bundle:
    """A loaded description; the weights stay on disk. Everything in it was checked.

    Examples:
        >>> from edgetune_runtime import Bundle
        >>> bundle = Bundle.load("runs/onnx-int4")
        >>> bundle.format, bundle.box_format.frame, bundle.request("the owl")
        ('onnx', 'norm1000', 'Locate the owl and output its bbox coordinates in JSON format.')

    Attributes:
        folder: where the bundle is, absolute.
        format: "onnx", ...: which engine runs it.
        precision: "fp32", "fp16", "int8", "int4" or "int3", of the decoder.
        half: whether it computes in float16.
        family: the name of the model family, for people; nothing is looked up by it.
        box_format: how the model writes boxes and says that there is none.
        chat: the prompt's pieces.
        ground_prompt: the request for a box, with `{phrase}`.
        spec: image preprocessing, any of the rules in `edgetune_runtime.images`.
        eos: token ids that end an answer.
        tokens: role -> token id ("image", "vision_start", ...).
        rope: rotary embedding.
        model: sizes ("layers", "kv_heads", "head_dim", "hidden", "vocabulary", "deepstack").
        limits: length limits.
        grammar: of the model's answers over its tokens; None where they have none, as in bundles of earlier versions.
        accuracy_level: of products with quantized weights, see docs/bundle.md; None where the format has none.
        purposes: what it was written for: "lean" with graphs for engines without torch, "server" as a checkpoint.
        packed: what a bundle that is a quantized checkpoint says of its tensors, or None: see docs/bundle.md.
        files: role -> absolute path ("vision", "embed", "decoder", "tokenizer"; without "lean" no graphs).
        manifest: the whole manifest, as read.
    """

    folder: Path
    format: str
    precision: str
    half: bool
    family: str
    box_format: BoxFormat
    chat: Chat
    ground_prompt: str
    spec: Preprocessing
    eos: tuple[int, ...]
    tokens: Mapping[str, int]
    rope: Rope
    model: Mapping[str, int]
    limits: Limits
    grammar: Automaton | None
    accuracy_level: int | None
    purposes: tuple[str, ...]
    packed: Mapping[str, Any] | None
    files: Mapping[str, Path]
    manifest: Mapping[str, Any]

    @property
    def self_check(self) -> str:
        """How far it was compared with its checkpoint when it was exported: "full", "fast" or "none"."""
        parity = self.manifest["result"]["bundle"].get("parity")
        # Before there was a choice, every bundle was checked in full.
        return str(parity.get("check", "full")) if isinstance(parity, Mapping) else "none"

    def request(self, phrase: str) -> str:
        """Return the user's words that ask for what a phrase names.

        Raises:
            InputError: the phrase is empty or no text.
        """
        return self.ground_prompt.replace(PHRASE, check_phrase(phrase))

    def phrase(self, words: Any) -> str | None:
        """Return the phrase that `request` makes these words of; None where they ask for something else."""
        if not isinstance(words, str):
            return None
        before, _, behind = self.ground_prompt.partition(PHRASE)
        asked = words.startswith(before) and words.endswith(behind) and len(words) > len(before) + len(behind)
        return words[len(before) : len(words) - len(behind)] if asked else None

    def bounded(self, max_pixels: int) -> Bundle:
        """Return the bundle for pictures of at most this area after resizing, in pixels.

        Raises:
            InputError: it is more than the bundle allows, too little for a picture, or no limit that its
                preprocessing has.
        """
        if isinstance(self.spec, ImageSpec) and type(max_pixels) is int and max_pixels > self.spec.max_pixels:
            raise InputError(
                f"{self.folder}: max_pixels {max_pixels} is over the {self.spec.max_pixels} that it was exported for",
                hint=f"choose at most {self.spec.max_pixels}, or export again with --max-pixels",
            )
        spec = bounded(self.spec, max_pixels, self.folder)
        limits = replace(self.limits, max_image_tokens=spec.most_tokens)
        return replace(self, spec=spec, limits=limits)

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True, skip_larger_than: int | None = None) -> Bundle:
        """Read and check a bundle's manifest and files.

        Args:
            folder: the bundle.
            verify: compare every file with its sha256; without it only the manifest and the names are checked.
            skip_larger_than: compare files of more bytes than this by their size only, for a faster start.

        Raises:
            BundleError: not a bundle, or one of another schema; a file that is missing, was changed or is not listed;
                a field that is missing, of the wrong type, out of range or at odds with another.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        result = manifest.get("result")
        values = result.get("bundle") if isinstance(result, dict) else None
        if not isinstance(values, dict):
            raise BundleError(
                f"{folder / MANIFEST}: a {manifest.get('stage')!r} folder, not a bundle",
                hint="give a folder written by `edgetune export`",
            )
        if (schema := values.get("schema", 1)) != SCHEMA:
            raise BundleError(
                f"{folder / MANIFEST}: a bundle of schema {schema!r}, this version runs schema {SCHEMA}",
                hint="export the checkpoint again with this version of edgetune",
            )
        refuse_unlisted(folder, manifest)
        if verify:
            verify_files(folder, max_bytes=skip_larger_than)
        try:
            return cls._from_fields(folder, _Fields(values), manifest)
        except InputError as error:
            raise BundleError(f"{folder / MANIFEST}: result.bundle: {error}", hint="export the bundle again") from error

    @classmethod
    def _from_fields(cls, folder: Path, told: _Fields, manifest: Mapping[str, Any]) -> Bundle:
        format_, precision, target = told.text("format"), told.choice("precision", _PRECISIONS), told.text("target")
        lengths = told.part("limits")
        limits = Limits(lengths.whole("max_length", 1), lengths.whole("max_image_tokens", 1))
        model = {name: told.part("model").whole(name, 1) for name in _MODEL}
        model["deepstack"] = told.part("model").whole("deepstack", 0, model["layers"])
        tokens = told.part("tokens")
        ids = {role: tokens.whole(role, 0, model["vocabulary"] - 1) for role in tokens.values if role != "eos"}
        if "image" not in ids:
            raise InputError("tokens.image is missing")
        prompt = told.text("ground_prompt")
        if PHRASE not in prompt:
            raise InputError(f"ground_prompt has no {PHRASE}: {prompt!r}")
        level = told.whole("accuracy_level", 0, 4) if "accuracy_level" in told.values else None
        files = {role: _inside(folder, told.part("files").text(role), manifest) for role in told.part("files").values}
        purposes = told.texts("for") if "for" in told.values else PURPOSES
        for role in (*(("vision", "embed", "decoder") if "lean" in purposes else ()), "tokenizer"):
            if role not in files:
                raise InputError(f"files.{role} is missing")
        if format_ == "trt" or "trt" in told.values:
            _check_trt(told.part("trt"), files)
        return cls(
            folder=folder,
            format=format_,
            precision=precision,
            half=precision == "fp16" or target == "cuda",
            family=told.text("family"),
            box_format=BoxFormat.from_dict(told.values.get("boxes")),
            chat=_chat(told.part("chat")),
            ground_prompt=prompt,
            spec=_spec(told.values.get("image"), limits),
            eos=tokens.wholes("eos", 0, model["vocabulary"] - 1),
            tokens=ids,
            rope=_rope(told.part("rope"), model["head_dim"]),
            model=model,
            limits=limits,
            grammar=_grammar(told.values.get("grammar"), model["vocabulary"]),
            accuracy_level=level,
            purposes=purposes,
            packed=_packed(told.part("packed"), files) if "packed" in told.values else None,
            files=files,
            manifest=manifest,
        )


def check_phrase(phrase: Any) -> str:
    """Return a phrase that a model can be asked for.

    Raises:
        InputError: it is empty or no text.
    """
    if not isinstance(phrase, str):
        raise InputError(f"a phrase is a text, got {type(phrase).__name__}")
    if not phrase.strip():
        raise InputError("the phrase is empty")
    return phrase


@dataclass(frozen=True)
class _Fields:
    """An object of the manifest; complaints begin with a field's place in it, such as `limits.max_length`."""

    values: Mapping[str, Any]
    place: str = ""

    def _value(self, name: str, kinds: type | tuple[type, ...], what: str) -> Any:
        value = self.values.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            found = f"must be {what}, got {_short(value)}" if name in self.values else "is missing"
            raise InputError(f"{self.place}{name} {found}")
        return value

    def part(self, name: str) -> _Fields:
        return _Fields(self._value(name, dict, "an object"), f"{self.place}{name}.")

    def text(self, name: str, *, empty: bool = False) -> str:
        value: str = self._value(name, str, "a text")
        if not (value or empty):
            raise InputError(f"{self.place}{name} is empty")
        return value

    def choice(self, name: str, known: tuple[str, ...]) -> str:
        if (value := self.text(name)) not in known:
            raise InputError(f"{self.place}{name} must be one of {', '.join(known)}, got {value!r}")
        return value

    def flag(self, name: str) -> bool:
        value: bool = self._value(name, bool, "true or false")
        return value

    def whole(self, name: str, low: int, high: int = _MOST) -> int:
        value: int = self._value(name, int, "a whole number")
        if not low <= value <= high:
            raise InputError(f"{self.place}{name} must be from {low} to {high}, got {_short(value)}")
        return value

    def wholes(self, name: str, low: int, high: int = _MOST) -> tuple[int, ...]:
        items = self.lists(name, "a list of whole numbers")
        if not items.values:
            raise InputError(f"{self.place}{name} is empty")
        return tuple(items.whole(index, low, high) for index in items.values)

    def texts(self, name: str) -> tuple[str, ...]:
        items = self.lists(name, "a list of texts")
        return tuple(items.text(index) for index in items.values)

    def parts(self, name: str) -> tuple[_Fields, ...]:
        items = self.lists(name, "a list of objects")
        if not items.values:
            raise InputError(f"{self.place}{name} is empty")
        return tuple(items.part(index) for index in items.values)

    def lists(self, name: str, what: str = "a list of lists") -> _Fields:
        values = self._value(name, list, what)
        return _Fields({str(index): value for index, value in enumerate(values)}, f"{self.place}{name}.")


def _grammar(values: Any, vocabulary: int) -> Automaton | None:
    """The grammar of answers, None where the bundle says nothing, or why there is none."""
    if values is None or (isinstance(values, dict) and isinstance(values.get("problem"), str)):
        return None
    try:
        return Automaton.from_dict(values, vocabulary)
    except InputError as error:
        raise InputError(f"grammar {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _chat(told: _Fields) -> Chat:
    """The prompt's pieces; those that no prompt can do without must not be empty."""
    names = [field.name for field in fields(Chat) if field.name != "opening" or "opening" in told.values]
    if wrong := sorted(set(told.values) ^ set(names)):
        raise InputError(f"{told.place}{wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
    needed = ("prefix", "image_token", "suffix", "end")
    return Chat(**{name: told.text(name, empty=name not in needed) for name in names})


def _spec(values: Any, limits: Limits) -> Preprocessing:
    try:
        spec = rule_from_dict(values)
    except InputError as error:
        raise InputError(f"image.{error}") from error
    if spec.most_tokens != limits.max_image_tokens:
        raise InputError(
            f"image makes {spec.most_tokens} tokens of a picture at most, "
            f"but limits.max_image_tokens is {limits.max_image_tokens}"
        )
    return spec


def _rope(told: _Fields, head_dim: int) -> Rope:
    theta = told._value("theta", (int, float), "a number")
    if not 1 <= theta <= 1e12:
        raise InputError(f"rope.theta must be from 1 to 1e12, got {theta}")
    size = told.whole("head_dim", 2)
    turning = told.whole("rotary_dim", 2, size) if "rotary_dim" in told.values else size
    rope = Rope(theta, told.wholes("mrope_section", 0), told.flag("interleaved"), size, turning)
    if rope.head_dim != head_dim or len(rope.mrope_section) != 3 or 2 * sum(rope.mrope_section) != turning:
        raise InputError(f"rope does not fit heads of {head_dim} (model.head_dim): {dict(told.values)}")
    return rope


def _packed(told: _Fields, files: Mapping[str, Path]) -> Mapping[str, Any]:
    """What the format of a quantized checkpoint adds, as read."""
    for role in told.texts("files"):
        if role not in files:
            raise InputError(f"packed.files names {role!r}, which is not in files")
    for name in ("blocks", "text_root", "vision_root"):
        told.part("modules").text(name)
    if "prefixes" in told.values:
        pairs = told.lists("prefixes")
        for place in pairs.values:
            if len(pairs.texts(place)) != 2:
                raise InputError(f"{pairs.place}{place} is no pair: {_short(pairs.values[place])}")
    products = told.part("products")
    for name in products.values:
        product = products.part(name)
        product.texts("layers"), product.whole("bits", 1, 8), product.whole("group_size", 1), product.flag("symmetric")
    return told.values


def _check_trt(told: _Fields, files: Mapping[str, Path]) -> None:
    """Refuse networks and ranges that engines cannot be built from, see docs/bundle.md."""
    told.text("profile"), told.flag("in_place")
    networks = told.part("profiles")
    for name in networks.values:
        if name not in files:
            raise InputError(f"trt.profiles names {name!r}, which is not in files")
    for name in ("vision", "decoder"):
        for use in networks.parts(name):
            for input_ in use.values:
                ranges = use.lists(input_)
                shapes = [ranges.wholes(place, 1) for place in ranges.values]
                if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1:
                    raise InputError(f"{use.place}{input_} must be three shapes, got {_short(use.values[input_])}")
                if not all(low <= best <= high for low, best, high in zip(*shapes, strict=True)):
                    raise InputError(f"{use.place}{input_} must be smallest, usual and largest sizes, got {shapes}")


def _inside(folder: Path, name: str, manifest: Mapping[str, Any]) -> Path:
    """Return the path of a bundle file, which must be one that the manifest lists and so verifies."""
    if PurePosixPath(name).as_posix() not in manifest["files"]:
        raise InputError(f"{name!r} is used but not listed in 'files'")
    return folder / name
