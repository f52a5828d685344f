"""A loaded bundle that answers: boxes for phrases, text for questions."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgetune_runtime.backends import Backend, ImageFeatures, Int, load_backend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.codec.confidence import token_probabilities
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import Answer, Detection, parse
from edgetune_runtime.decode import Prompt, Step, greedy_steps
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import ImageSource, image_hash, load_image
from edgetune_runtime.images.smart import preprocess
from edgetune_runtime.rope import mrope_positions
from edgetune_runtime.text_stream import TextStream
from edgetune_runtime.timing import Timings
from edgetune_runtime.tokens import TextTokenizer


@dataclass(frozen=True)
class EncodedImage:
    """A picture after the vision encoder."""

    geometry: Geometry
    grid_thw: Int
    image_tokens: int
    features: ImageFeatures


class Session:
    """One bundle in memory. Use `Session.load`; a session serves one thread at a time.

    Attributes:
        bundle: the description of what is loaded.
        last_timings: what the latest answer cost, or None before the first.
        last_answer: the latest boxes with their raw text and status, or None before the first.
    """

    def __init__(self, bundle: Bundle, backend: Backend, tokenizer: TextTokenizer, *, cached_images: int = 8) -> None:
        self.bundle = bundle
        self.last_timings: Timings | None = None
        self.last_answer: Answer | None = None
        self._backend = backend
        self._tokenizer = tokenizer
        self._stop = frozenset(bundle.eos)
        self._cached_images = cached_images
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backend: Backend | None = None,
        device: str = "cpu",
        threads: int | None = None,
        engine: str | None = None,
        verify: bool = True,
        cached_images: int = 8,
    ) -> Session:
        """Load a bundle.

        Args:
            folder: written by `edgetune export`.
            backend: a loaded engine to use instead of the bundle's own.
            device: "cpu" or "cuda".
            threads: CPU threads; None leaves the choice to the engine.
            engine: name of an installed engine (see `load_backend`) in place of the runtime's own for the format.
            verify: compare all files with their sha256 first.
            cached_images: how many images' features are kept, so that further questions about them skip the encoder.

        Raises:
            BundleError: the folder is not an intact bundle.
            InputError: an argument makes no sense.
            MissingDependency: the engine or its provider for the device is not installed.
        """
        bundle = Bundle.load(folder, verify=verify)
        if backend is None:
            backend = load_backend(bundle, device=device, threads=threads, engine=engine)
        return cls(bundle, backend, TextTokenizer(bundle.files["tokenizer"]), cached_images=cached_images)

    def ground(self, image: ImageSource, phrase: str, *, max_new_tokens: int = 128) -> list[Detection]:
        """Find what a phrase names; an empty list when it is not there.

        `last_answer` tells an absent object from an answer that could not be read.

        Args:
            image: path, encoded bytes, PIL image or array.
            phrase: such as "the left clock".
            max_new_tokens: longest answer.

        Returns:
            Boxes (x1, y1, x2, y2) in float pixels of the original upright image.

        Raises:
            ImageError: the image cannot be used.
            InputError: the phrase is empty or spells a control token, or the prompt exceeds the bundle's limit.
        """
        if not phrase.strip():
            raise InputError("the phrase is empty")
        request = self.bundle.family.ground_prompt.replace("{phrase}", phrase)
        return self.answer(image, request, max_new_tokens=max_new_tokens).detections

    def answer(self, image: ImageSource, prompt: str, *, max_new_tokens: int = 128) -> Answer:
        """Send the user's whole words and read the reply as boxes, with its text and status. Raises as `ground`."""
        started = time.perf_counter()
        encoded, vision_s = self._encode(image)
        steps = list(self._generate(encoded, prompt, max_new_tokens, started, vision_s, probabilities=True))
        # Some families write boxes with control tokens, so these stay in the text.
        decode = partial(self._tokenizer.decode, keep_control=True)
        ids = [step.token for step in steps]
        known = [step.probability for step in steps if step.probability is not None]
        tokens = token_probabilities(ids, known, decode) if len(known) == len(ids) else []
        self.last_answer = parse(decode(ids), encoded.geometry, self.bundle.family.box_format, tokens)
        return self.last_answer

    def ask(self, image: ImageSource | None, question: str, *, max_new_tokens: int = 256) -> str:
        """Answer a question about an image (None: about no image) in words. Raises as `ground`."""
        return "".join(self.stream(image, question, max_new_tokens=max_new_tokens)).strip()

    def stream(self, image: ImageSource | None, prompt: str, *, max_new_tokens: int = 256) -> Iterator[str]:
        """Yield the answer to the user's whole words piece by piece, as it is generated. Raises as `ground`."""
        started = time.perf_counter()
        encoded, vision_s = (None, 0.0) if image is None else self._encode(image)
        text = TextStream(self._tokenizer.decode)
        for step in self._generate(encoded, prompt, max_new_tokens, started, vision_s, probabilities=False):
            if piece := text.push(step.token):
                yield piece
        if piece := text.finish():
            yield piece

    def _encode(self, source: ImageSource) -> tuple[EncodedImage, float]:
        """Load, preprocess and encode an image, or take it from the cache; also the seconds in the encoder."""
        image = load_image(source)
        key = image_hash(image)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key], 0.0
        pixels = preprocess(image, self.bundle.spec)
        started = time.perf_counter()
        features = self._backend.encode_images(pixels.pixel_values, pixels.grid_thw)
        seconds = time.perf_counter() - started
        encoded = EncodedImage(pixels.geometry, pixels.grid_thw, pixels.image_tokens, features)
        if self._cached_images > 0:
            self._images[key] = encoded
            while len(self._images) > self._cached_images:
                self._images.popitem(last=False)
        return encoded, seconds

    def _generate(
        self,
        encoded: EncodedImage | None,
        text: str,
        max_new_tokens: int,
        started: float,
        vision_s: float,
        *,
        probabilities: bool,
    ) -> Iterator[Step]:
        """Yield generated tokens without the stop token, and leave the timings behind."""
        prompt = self._prompt(encoded, text)
        ready = time.perf_counter()
        first = ready
        count = 0
        steps = greedy_steps(
            self._backend,
            prompt,
            stop=self._stop,
            max_new_tokens=max_new_tokens,
            max_length=self.bundle.limits.max_length,
            probabilities=probabilities,
        )
        for count, step in enumerate(steps, start=1):
            if count == 1:
                first = time.perf_counter()
            if step.token not in self._stop:
                yield step
        ended = time.perf_counter()
        self.last_timings = Timings(
            preprocess=ready - started - vision_s,
            vision=vision_s,
            prefill=first - ready,
            decode=ended - first,
            total=ended - started,
            tokens=count,
        )

    def _prompt(self, encoded: EncodedImage | None, text: str) -> Prompt:
        image_token = self.bundle.tokens["image"]
        count, grid = (0, np.empty((0, 3), np.int64)) if encoded is None else (encoded.image_tokens, encoded.grid_thw)
        ids = self._tokenizer.prompt(self.bundle.chat, text, image_tokens=count, image_token=image_token)
        positions, following = mrope_positions(
            ids, grid, image_token=image_token, merge_size=self.bundle.spec.merge_size
        )
        return Prompt(ids, positions, following, image_token, None if encoded is None else encoded.features)
