"""From a picture and words to tokens: what a session reads with, and what it keeps of earlier pictures.

A picture's features and its part of a prompt are the same whatever is asked. So features are kept for further
questions, and the decoder's sequence, which begins with the picture, is taken back to the picture's end.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgetune_runtime.backends import Backend, ImageFeatures, Int
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.codec import grammar
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.constrained.draft import Draft
from edgetune_runtime.constrained.steps import constrained_steps, constrained_together, room_together
from edgetune_runtime.constrained.walk import Rules
from edgetune_runtime.decode import SPARE, Prompt, Step, check_count, greedy_steps
from edgetune_runtime.errors import BundleError, Cancelled, InputError
from edgetune_runtime.images.base import Pieces
from edgetune_runtime.images.load import ImageSource, image_hash, load_image
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.prefixes import PrefixCache
from edgetune_runtime.rope import prompt_positions
from edgetune_runtime.timing import Timings
from edgetune_runtime.tokens import TextTokenizer

_CACHED_BYTES = 64 << 20
"""Most memory of the features of earlier pictures; those of the last one are kept in any case."""


Held = tuple[Rules, Draft]
"""What an answer is held to, and what it is expected to be."""


@dataclass(frozen=True)
class EncodedImage:
    """A picture after the vision encoder: its sizes, its part of a prompt, its grid of patches if it has one.

    Its key is its own size and the hash of its pixels, or empty for a picture that is not kept.
    """

    geometry: Geometry
    pieces: Pieces
    grid_thw: Int | None
    features: ImageFeatures
    key: str = ""


@dataclass
class Clock:
    """When the stages of an answer ended, in seconds of `time.perf_counter`, and the share of the vision encoder."""

    started: float
    vision: float = 0.0
    ready: float = 0.0
    first: float = 0.0
    tokens: int = 0
    known: int = 0
    passes: int = 0
    cancel: threading.Event | None = None

    def check(self) -> None:
        """Raise `Cancelled` where the answer is no longer wanted."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"the answer was cancelled after {self.tokens} tokens")

    def timings(self) -> Timings:
        """What the answer cost up to now."""
        ended = time.perf_counter()
        return Timings(
            preprocess=self.ready - self.started - self.vision,
            vision=self.vision,
            prefill=self.first - self.ready,
            decode=ended - self.first,
            total=ended - self.started,
            tokens=self.tokens,
            known=self.known,
            passes=self.passes,
        )


class Reader:
    """One engine and its tokenizer. Whoever shares a reader between threads takes turns.

    Args:
        bundle: what is loaded.
        engine: that runs it.
        tokenizer: of the bundle.
        cached_images: how many pictures' features are kept.
        prefix_cache_mb: memory for what the decoder has read of earlier pictures.
        draft: whether large JPEG files are decoded smaller, as `Session.load` says.

    Raises:
        BundleError: the manifest's token ids are not those of the tokenizer.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Backend,
        tokenizer: TextTokenizer,
        *,
        cached_images: int,
        prefix_cache_mb: int,
        draft: bool,
    ) -> None:
        _check_tokens(bundle, tokenizer)
        self._bundle, self._engine, self._tokenizer = bundle, engine, tokenizer
        self._stop = frozenset(bundle.eos)
        self._cached_images, self._draft = cached_images, draft
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()
        self._begun: EncodedImage | None = None  # with which the engine's sequence begins
        self._shared = 0  # tokens of it up to that picture's end
        self.prefixes = PrefixCache(prefix_cache_mb * 1_000_000)

    def close(self) -> None:
        """Give all memory back."""
        self._images.clear()
        self.prefixes.clear()
        self._engine.close()

    def text(self, ids: list[int], *, keep_control: bool) -> str:
        """The text of tokens, with those that control the chat or without."""
        return self._tokenizer.decode(ids, keep_control=keep_control)

    def encode(self, source: ImageSource, clock: Clock, *, keep: bool = True) -> EncodedImage:
        """Load, preprocess and encode an image, or take it from the cache.

        Raises:
            ImageError: it cannot be used.
            Cancelled: nobody waits any more.
        """
        image, own = self._load(source)
        keep = keep and self._cached_images > 0
        # Files of different sizes may be the same picture once they are decoded smaller.
        key = f"{own[0]}x{own[1]} {image_hash(image)}" if keep else ""
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        clock.check()
        spec = self._bundle.spec
        raw = self._engine.shape.raw_pixels
        plan, arrays = spec.plan(*own), spec.arrays(image, raw=raw)
        started = time.perf_counter()
        self._put_aside()
        self._engine.forget()  # the encoder and the cache of the last answer need not be in memory together
        features = self._engine.encode_images(spec.encoder_arrays([arrays]))
        clock.vision = time.perf_counter() - started
        if len(features.embeddings) != plan.image_tokens:
            raise BundleError(
                f"{self._bundle.folder}: the vision encoder gives {len(features.embeddings)} features where the "
                f"manifest's image preprocessing makes {plan.image_tokens} tokens",
                hint="export the bundle again",
            )
        encoded = EncodedImage(plan.geometry, plan.pieces, arrays.get("image_grid_thw"), features, key)
        if keep:
            self._images[key] = encoded
            while len(self._images) > 1 and (
                len(self._images) > self._cached_images
                or sum(kept.features.nbytes for kept in self._images.values()) > _CACHED_BYTES
            ):
                self._images.popitem(last=False)
        return encoded

    def _load(self, source: ImageSource) -> tuple[Image.Image, tuple[int, int]]:
        """A picture to preprocess, and its own width and height."""
        if self._draft:
            assert isinstance(self._bundle.spec, ImageSpec)
            return self._bundle.spec.draft(source)
        image = load_image(source)
        return image, image.size

    def prompt(self, encoded: EncodedImage | None, text: Any) -> Prompt:
        """The prompt with a picture, or None, and the user's whole words.

        Raises:
            InputError: the words are no text, or spell a control token.
        """
        if not isinstance(text, str):
            raise InputError(f"a prompt is a text, got {type(text).__name__}")
        image_token = self._bundle.tokens["image"]
        pieces: int | Pieces = 0 if encoded is None else encoded.pieces
        grid, features = (None, None) if encoded is None else (encoded.grid_thw, encoded.features)
        ids = self._tokenizer.prompt(
            self._bundle.chat,
            text,
            image_tokens=pieces,
            image_token=image_token,
            allowed=grammar.tags(self._bundle.box_format.style),
        )
        positions, following = prompt_positions(ids, self._bundle.spec, grid, image_token=image_token)
        return Prompt(ids, positions, following, image_token, features)

    def rules(self, encoded: EncodedImage) -> Rules | None:
        """What boxes about a picture are held to; None where its bundle has no grammar for them."""
        grammar_, fmt = self._bundle.grammar, self._bundle.box_format
        if grammar_ is None:
            return None
        return Rules.of(grammar_, encoded.geometry, fmt, self._tokenizer.piece, self._tokenizer.control_ids)

    def draft(self, rules: Rules, phrase: str, earlier: str | None) -> Draft:
        """What the answer about a phrase is expected to be: an earlier one's text, or a box with the phrase's name."""
        chat, fmt = self._bundle.chat, self._bundle.box_format
        text = earlier
        if text is None:
            anywhere = [f"{number:.{fmt.decimals}f}" for number in (0, 0, 1, 1)]
            text = grammar.write([anywhere], [phrase], fmt.style)
        ids = self._tokenizer.encode(chat.before_answer + text + chat.end, after=chat.last_suffix)
        return Draft(rules, ids, numbers=earlier is not None)

    def generate(
        self,
        prompt: Prompt,
        encoded: EncodedImage | None,
        max_new_tokens: int,
        clock: Clock,
        *,
        probabilities: bool,
        held: Held | None = None,
    ) -> Iterator[Step]:
        """Yield generated tokens without the stop token.

        Args:
            prompt: what is read first.
            encoded: its picture.
            max_new_tokens: longest answer.
            clock: is told.
            probabilities: whether each token comes with its own.
            held: what the answer is held to and expected to be; None lets the model write anything.

        Raises:
            InputError: the prompt is too long, or `max_new_tokens` is no number of them.
            Cancelled: nobody waits any more.
        """
        check_count(max_new_tokens)
        clock.ready = clock.first = time.perf_counter()
        clock.known = self._known(prompt, encoded, max_new_tokens)
        self._begun = None  # until the picture has been read
        steps: Iterator[Step]
        longest = self._bundle.limits.max_length
        if held is not None:
            steps = constrained_steps(
                self._engine, prompt, *held, max_new_tokens=max_new_tokens, max_length=longest, known=clock.known
            )
        else:
            steps = greedy_steps(
                self._engine,
                prompt,
                stop=self._stop,
                max_new_tokens=max_new_tokens,
                max_length=longest,
                probabilities=probabilities,
                known=clock.known,
            )
        while True:
            clock.check()
            step = next(steps, None)
            if step is None:
                return
            clock.tokens, clock.passes = clock.tokens + 1, step.passes
            if clock.tokens == 1:
                clock.first = time.perf_counter()
                self._begun, self._shared = encoded, prompt.shared
            if step.token not in self._stop:
                yield step

    def generate_together(
        self,
        prompts: Sequence[Prompt],
        encoded: EncodedImage,
        max_new_tokens: int,
        clock: Clock,
        held: Sequence[Held],
    ) -> list[tuple[list[Step], int]]:
        """Answers about one picture that are written side by side, without their stop tokens, and how many with it.

        Args:
            prompts: what is asked.
            encoded: the picture.
            max_new_tokens: longest answer.
            clock: is told.
            held: what each answer is held to and expected to be.

        Raises:
            InputError: a prompt is too long, or `max_new_tokens` is no number of them.
            Cancelled: nobody waits any more.
        """
        check_count(max_new_tokens)
        clock.ready = clock.first = time.perf_counter()
        clock.known = self._known(prompts[0], encoded, room_together(prompts, max_new_tokens))
        self._begun = None
        answers: list[list[Step]] = [[] for _ in prompts]
        longest = self._bundle.limits.max_length
        passes = constrained_together(
            self._engine, prompts, held, max_new_tokens=max_new_tokens, max_length=longest, known=clock.known
        )
        while True:
            clock.check()
            found = next(passes, None)
            if found is None:
                return [([step for step in each if step.token not in self._stop], len(each)) for each in answers]
            if not clock.passes:
                clock.first = time.perf_counter()
                self._begun, self._shared = encoded, prompts[0].shared
            clock.passes += 1
            for answer, steps in zip(answers, found, strict=True):
                answer += steps
                clock.tokens += len(steps)

    @property
    def together(self) -> bool:
        """Whether answers about one picture can be written side by side."""
        return self._engine.branches

    def _known(self, prompt: Prompt, encoded: EncodedImage | None, room: int) -> int:
        """How many tokens of a prompt the engine has read already, for an earlier phrase about the same picture."""
        shared, engine = prompt.shared, self._engine
        if encoded is None or not shared:
            return 0
        here = encoded is self._begun and shared <= engine.length
        if here and len(prompt.token_ids) + room <= engine.capacity and engine.rewind(shared):
            return shared
        if here:  # the cache is too short for what comes
            saved = engine.save(shared)
        else:
            self._put_aside()
            saved = self.prefixes.take(encoded.key)
        if saved is None:
            return 0
        assert saved.length == shared
        engine.restore(saved, len(prompt.token_ids) - shared + room + SPARE)
        return shared

    def _put_aside(self) -> None:
        """Keep what the engine has read of the picture that its sequence begins with, before another one begins."""
        begun, self._begun = self._begun, None
        if begun is not None and begun.key and self.prefixes.limit and 0 < self._shared <= self._engine.length:
            self.prefixes.put(begun.key, self._engine.save(self._shared))


def _check_tokens(bundle: Bundle, tokenizer: TextTokenizer) -> None:
    """Refuse a manifest whose token ids are not those of the tokenizer beside it."""
    image, end = (tokenizer.id_of(token) for token in (bundle.chat.image_token, bundle.chat.end))
    if image != bundle.tokens["image"]:
        raise BundleError(
            f"{bundle.folder}: tokens.image is {bundle.tokens['image']} in the manifest, but the tokenizer has "
            f"{bundle.chat.image_token!r} as {image}",
            hint="export the bundle again",
        )
    if end not in bundle.eos:
        raise BundleError(
            f"{bundle.folder}: tokens.eos {list(bundle.eos)} lacks {bundle.chat.end!r}, whose id is {end}",
            hint="export the bundle again",
        )
