"""A Hugging Face checkpoint that answers under torch, greedily, with what each answer cost."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForImageTextToText

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import stop_ids
from edgetune_core.generation import generate_greedily
from edgetune_core.torch_runner.inputs import Inputs, LibraryInputs, OwnInputs
from edgetune_runtime.answer import Answer, Detection, Stream
from edgetune_runtime.bundle import PHRASE, check_phrase
from edgetune_runtime.codec.confidence import token_probabilities
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import ParsedAnswer, parse
from edgetune_runtime.errors import MissingDependency
from edgetune_runtime.images.load import ImageSource, load_image
from edgetune_runtime.images.rules import bounded
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json
from edgetune_runtime.timing import Timings


class _Generated(NamedTuple):
    """New tokens [N] up to the one that ends them, each step's logits [1, V], the image's geometry, and the cost."""

    ids: list[int]
    logits: tuple[torch.Tensor, ...]
    geometry: Geometry
    timings: Timings


class TorchModel:
    """A vision-language checkpoint that answers through `generate`, a `Runner` as a `Session` is.

    Args:
        checkpoint: its folder.
        adapter: a LoRA adapter to apply, unmerged.
        device: "cpu" or "cuda".
        max_pixels: largest area of a resized picture, in pixels, in place of the checkpoint's own.

    Attributes:
        spec: how pictures are taken.

    Raises:
        InputError: the checkpoint's family is not run under torch, a file of it is missing or wrong, or its
            preprocessing has no such limit.
        MissingDependency: an adapter without peft.
    """

    def __init__(self, checkpoint: Path, *, adapter: Path | None, device: str, max_pixels: int | None = None) -> None:
        base = HubCheckpoint.open(checkpoint, quantized=True)
        tokenizer, self._family = base.tokenizer, base.family
        self._device = torch.device(device)
        self._tokenizer = tokenizer
        self.spec = base.spec if max_pixels is None else bounded(base.spec, max_pixels, checkpoint)
        if isinstance(self.spec, ImageSpec):
            limits = None if max_pixels is None else (self.spec.min_pixels, self.spec.max_pixels)
            self._inputs: Inputs = LibraryInputs(checkpoint, self._family, limits)
        else:
            self._inputs = OwnInputs(checkpoint, self._family)
        model = _load(checkpoint)
        if adapter is not None:
            # Layers are adapted in place, so the model inside does all the work, and forward hooks on it see generate's
            # steps.
            model = Adapter.of(base, adapter).attach(model).get_base_model()
        self._model = model.to(self._device).eval()
        self._clock = _Clock(self._model.get_submodule(base.modules.vision_root), self._model, self._device)
        self._stop = stop_ids(tokenizer, self._family)

    @property
    def dtype(self) -> str:
        """Precision of the weights as torch names it, e.g. `bfloat16`."""
        return str(self._model.dtype).removeprefix("torch.")

    def request(self, phrase: str) -> str:
        """Return the user's words that ask for what a phrase names, as `Session.request` does."""
        return self._family.ground_prompt.replace(PHRASE, check_phrase(phrase))

    def ground(self, image: ImageSource, phrase: str, *, max_new_tokens: int = 128) -> list[Detection]:
        """Find what a phrase names, as `Session.ground` does. Raises as `answer`."""
        return self.answer(image, self.request(phrase), max_new_tokens=max_new_tokens).detections

    def ask(self, image: ImageSource, question: str, *, max_new_tokens: int = 256) -> str:
        """Answer a question about an image in words. Raises as `answer`."""
        return "".join(self.stream(image, question, max_new_tokens=max_new_tokens)).strip()

    def answer(self, image: ImageSource, prompt: str, *, max_new_tokens: int = 128) -> Answer:
        """Send the user's whole words and read the reply as boxes, as `Session.answer` does.

        Raises:
            ImageError: the image cannot be used.
            InputError: the words spell a control token.
        """
        found = self._generate(image, prompt, max_new_tokens)
        return Answer.of(self._read(found), found.timings)

    def stream(self, image: ImageSource, prompt: str, *, max_new_tokens: int = 256) -> Stream:
        """Send the user's whole words and give the reply in words, in one piece. Raises as `answer`."""
        found = self._generate(image, prompt, max_new_tokens)

        def pieces() -> Generator[str, None, Timings]:
            yield self._text(found.ids, keep_control=False)
            return found.timings

        return Stream(pieces())

    def _read(self, found: _Generated) -> ParsedAnswer:
        """Return the boxes of an answer, with their scores."""
        chosen = [
            float(step[0].float().softmax(-1)[token]) for step, token in zip(found.logits, found.ids, strict=False)
        ]
        decode = partial(self._tokenizer.decode, keep_control=True)
        tokens = token_probabilities(found.ids, chosen, decode, self._family.chat.before_answer)
        return parse(self._text(found.ids, keep_control=True), found.geometry, self._family.box_format, tokens)

    def _text(self, ids: list[int], *, keep_control: bool) -> str:
        """Return what the tokens say; some families write boxes with control tokens, which have to stay for reading."""
        return self._tokenizer.decode(ids, keep_control=keep_control).removeprefix(self._family.chat.before_answer)

    def _generate(self, image: ImageSource, text: str, max_new_tokens: int) -> _Generated:
        """Answer an image and a text."""
        started = time.perf_counter()
        inputs, geometry = self._inputs(load_image(image), text)
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        preprocess = time.perf_counter() - started
        with torch.inference_mode(), self._clock.running():
            output = generate_greedily(
                self._model,
                inputs,
                stop=self._stop,
                pad=self._stop[-1],
                max_new_tokens=max_new_tokens,
                output_logits=True,
            )
        new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        timings = self._clock.timings(preprocess, time.perf_counter() - started, len(new))
        ids = new[:-1] if new and new[-1] in self._stop else new
        return _Generated(ids, output.logits, geometry, timings)


class _Clock:
    """Splits one `generate` into vision, prefill and decode by watching two modules' forward calls."""

    def __init__(self, vision: torch.nn.Module, model: torch.nn.Module, device: torch.device) -> None:
        self._device = device
        self._vision: list[float] = []
        self._steps: list[float] = []
        self._start = self._end = 0.0
        self._watch(vision, self._vision)
        self._watch(model, self._steps)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time one `generate` call; earlier readings are dropped."""
        self._vision.clear()
        self._steps.clear()
        self._start = self._now()
        yield
        self._end = self._now()

    def timings(self, preprocess: float, total: float, tokens: int) -> Timings:
        """The stages of the last call; prefill ends with the first token, all after it is decode."""
        vision = self._vision[1] - self._vision[0]
        first_end = self._steps[1]
        # Versions of transformers run the vision tower inside the first step or before it; either way this is the rest.
        prefill = first_end - self._start - vision
        return Timings(preprocess, vision, prefill, self._end - first_end, total, tokens)

    def _watch(self, module: torch.nn.Module, marks: list[float]) -> None:
        def mark(*_: Any) -> None:
            marks.append(self._now())

        module.register_forward_pre_hook(mark)
        module.register_forward_hook(mark)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _load(checkpoint: Path) -> Any:
    try:
        # Parts of transformers are not typed.
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto")
    except ImportError as error:  # of what reads quantized weights
        declared = read_json(checkpoint / "config.json").get("quantization_config")
        method = declared.get("quant_method") if isinstance(declared, dict) else None
        if method is None:
            raise
        raise MissingDependency(
            f"{checkpoint}: its weights are quantized ({method}), which transformers cannot read here: {error}",
            hint="if this is a bundle, its manifest.json is missing: copy the whole folder; else run the checkpoint "
            "that it was made from, or install what the message names",
        ) from error
    return model
