"""A loaded bundle that answers: boxes for phrases, text for questions."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import overload

from PIL import Image

from edgetune_runtime.answer import Answer, Detection, Stream, Token
from edgetune_runtime.backends import Backend, load_backend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.codec.confidence import token_probabilities
from edgetune_runtime.codec.grounding import parse
from edgetune_runtime.constrained.walk import Rules
from edgetune_runtime.decode import Prompt, Step
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import ImageSource, check_pixels
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.manifest import verify_files
from edgetune_runtime.memory import return_freed_memory
from edgetune_runtime.reader import Clock, EncodedImage, Held, Reader
from edgetune_runtime.text_stream import TextStream
from edgetune_runtime.timing import Timings
from edgetune_runtime.tokens import TextTokenizer
from edgetune_runtime.verified import verify_once

Texts = list[str] | tuple[str, ...]

_NUMBERS = (".data", ".safetensors")
"""Ends of names of files that only hold numbers: one that was changed gives wrong answers, but can do nothing else."""

MOST_TOGETHER = 16
"""Answers about one picture that are written side by side, at most: what is read for each takes memory."""

_HEAD_START = 0.2
"""Seconds before a tokenizer is read beside an engine that loads."""


class Session:
    """One bundle in memory.

    Examples:
        >>> from edgetune_runtime import Session
        >>> session = Session.load("runs/onnx-int4")
        >>> session.ground("photo.png", "the owl", max_new_tokens=12)  # an untrained model finds nothing
        []
        >>> session.close()

    Threads may share a session: their calls queue, and each gets its own answer. A model has one sequence, so a
    `stream` that was not read to its end is ended by the next call and says so when it is read on.

    Attributes:
        bundle: the description of what is loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        tokenizer: TextTokenizer,
        *,
        cached_images: int = 8,
        prefix_cache_mb: int = 0,
        draft: bool = False,
    ) -> None:
        if draft and not isinstance(bundle.spec, ImageSpec):
            raise InputError(
                f"{bundle.folder}: draft is for smart resize, and its pictures are prepared by {bundle.spec.rule!r}",
                hint="leave it out",
            )
        self.bundle = bundle
        self._backend = backend
        kept = {"cached_images": cached_images, "prefix_cache_mb": prefix_cache_mb}
        self._reader = Reader(bundle, backend, tokenizer, **kept, draft=draft)
        self._lock = threading.RLock()
        self._turn = 0  # counts calls, so that a stream notices that it is no longer the latest
        self._closed = False

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
        max_pixels: int | None = None,
        prefix_cache_mb: int = 0,
        draft: bool = False,
    ) -> Session:
        """Load a bundle.

        Args:
            folder: written by `edgetune export`.
            backend: a loaded engine to use instead of the bundle's own.
            device: "cpu", "cuda", or one of several GPUs such as "cuda:1".
            threads: CPU threads; None leaves the choice to the engine.
            engine: name of an installed engine (see `load_backend`) in place of the runtime's own for the format.
            verify: compare all files with their sha256; weights while the engine loads them, and not again once they
                passed on this machine, unless they were touched since.
            cached_images: how many images' features are kept, so that further questions about them skip the encoder;
                fewer where they are over 64 MiB together.
            max_pixels: largest area of a resized picture, where less than the bundle's own is enough: time and
                memory of an answer follow it.
            prefix_cache_mb: memory (MB) for what the decoder has read of earlier pictures, so that further questions
                about them begin at the picture's end also when others were asked about in between. A picture takes some
                20 to 200 MB; only those of `cached_images` are known again.
            draft: let large JPEG files be decoded at a half, a quarter or an eighth of their sides where the model sees
                less than two thirds of that. It saves most of the time before the vision encoder, and boxes move a
                little; docs/run.md has both.

        Raises:
            BundleError: the folder is not an intact bundle, or its parts contradict each other.
            InputError: an argument makes no sense.
            MissingDependency: the engine or its provider for the device is not installed.
        """
        bundle = Bundle.load(folder, verify=False)
        names = set(bundle.manifest["files"]) if verify else set()
        weights = {name for name in names if name.endswith(_NUMBERS)}
        verify_files(bundle.folder, names=names - weights)
        if max_pixels is not None:
            bundle = bundle.bounded(max_pixels)

        def read_beside(loaded: threading.Event) -> TextTokenizer:
            verify_once(bundle.folder, weights)
            # It is read under Python's lock, which an engine no longer needs once its threads are at their graphs.
            loaded.wait(_HEAD_START)
            return TextTokenizer(bundle.files["tokenizer"])

        with ThreadPoolExecutor(1) as pool:
            loaded = threading.Event()
            reading = pool.submit(read_beside, loaded)
            try:
                if backend is None:
                    backend = load_backend(bundle, device=device, threads=threads, engine=engine)
            finally:
                loaded.set()
                tokenizer = reading.result()  # raises here: a changed file explains what else went wrong
        return_freed_memory()  # reading a large vocabulary leaves 50 MB behind
        kept = {"cached_images": cached_images, "prefix_cache_mb": prefix_cache_mb}
        return cls(bundle, backend, tokenizer, **kept, draft=draft)

    def __enter__(self) -> Session:
        """Return the session, which is closed at the end of the `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Give the engine's memory back, after the call that runs now. The session takes no further calls."""
        with self._lock:
            self._closed = True
            self._turn += 1
            self._reader.close()

    def warm_up(self, width: int = 640, height: int = 480) -> Timings:
        """Answer once about a grey picture, so that the first real answer does not pay for what engines do once.

        Args:
            width: of the pictures to come, in pixels; engines prepare for sizes.
            height: of the pictures to come, in pixels.

        Returns:
            What it cost.

        Raises:
            ImageError: no picture can have that size.
            InputError: a side is not a whole number, or the session is closed.
        """
        if not all(isinstance(side, int) for side in (width, height)):
            raise InputError(f"width and height are whole numbers of pixels, not {width!r} and {height!r}")
        check_pixels(width, height, "warm_up")
        grey = Image.new("RGB", (width, height), (127, 127, 127))
        with self._lock:
            clock = self._begin()
            # Some engines run the first step plainly and prepare those after it.
            encoded = self._reader.encode(grey, clock, keep=False)
            return self._read(encoded, self._reader.prompt(encoded, self.request("nothing")), 4, clock).timings

    def request(self, phrase: str) -> str:
        """Return the user's words that ask for what a phrase names; see `Bundle.request`."""
        return self.bundle.request(phrase)

    @overload
    def ground(
        self, image: ImageSource, phrase: str, *, max_new_tokens: int = 128, constrained: bool = True
    ) -> list[Detection]: ...

    @overload
    def ground(
        self, image: ImageSource, phrase: Texts, *, max_new_tokens: int = 128, constrained: bool = True
    ) -> list[list[Detection]]: ...

    def ground(
        self, image: ImageSource, phrase: str | Texts, *, max_new_tokens: int = 128, constrained: bool = True
    ) -> list[Detection] | list[list[Detection]]:
        """Find what a phrase names; an empty list when it is not there.

        Short for `answer(image, request(phrase)).detections`; an answer also tells an absent object from a text that
        could not be read.

        Args:
            image: see `load_image`; arrays are uint8 RGB, so give frames of OpenCV as `frame[..., ::-1]`.
            phrase: such as "the left clock", or a list of phrases about the same image, which is encoded once.
            max_new_tokens: longest answer.
            constrained: see `answer`.

        Returns:
            Boxes (x1, y1, x2, y2) in float pixels of the original upright image; for a list of phrases, a list for
            each of them.

        Raises:
            ImageError: the image cannot be used.
            InputError: a phrase is empty or spells a control token, the prompt exceeds the bundle's limit, or the
                session is closed.
        """
        if isinstance(phrase, list | tuple):
            requests = [self.request(each) for each in phrase]
            answers = self.answer(image, requests, max_new_tokens=max_new_tokens, constrained=constrained)
            return [answer.detections for answer in answers]
        words = self.request(phrase)
        return self.answer(image, words, max_new_tokens=max_new_tokens, constrained=constrained).detections

    @overload
    def answer(
        self,
        image: ImageSource,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        cancel: threading.Event | None = None,
        constrained: bool = True,
        earlier: Sequence[Answer | None] = (),
    ) -> Answer: ...

    @overload
    def answer(
        self,
        image: ImageSource,
        prompt: Texts,
        *,
        max_new_tokens: int = 128,
        cancel: threading.Event | None = None,
        constrained: bool = True,
        earlier: Sequence[Answer | None] = (),
    ) -> list[Answer]: ...

    def answer(
        self,
        image: ImageSource,
        prompt: str | Texts,
        *,
        max_new_tokens: int = 128,
        cancel: threading.Event | None = None,
        constrained: bool = True,
        earlier: Sequence[Answer | None] = (),
    ) -> Answer | list[Answer]:
        """Send the user's whole words and read the reply as boxes.

        Words that are those of `request` are answered within the grammar of boxes, which the bundle carries: what must
        come is not asked for, and numbers stay inside the picture. Where the model would have written a well-formed
        answer anyway it is that answer, in fewer passes; where it would not, it is the most likely well-formed one.

        Args:
            image: as in `ground`.
            prompt: the words, such as `request` gives them, or a list of such texts about the same image.
            max_new_tokens: longest answer.
            cancel: set by another thread, it ends the call before the next token.
            constrained: False lets the model write anything.
            earlier: answers to the same prompts about a picture much like this one, such as the frame before: what is
                still true of them is read at once instead of written. They change the cost of an answer and not the
                answer.

        Returns:
            The answer; for a list, one for each. The first of them has the time of the encoder. Answers that are
            written side by side share the time of the decoder equally.

        Raises:
            ImageError: as `ground`.
            InputError: as `ground`.
            Cancelled: `cancel` was set.
        """
        answers: list[Answer] = []
        with self._lock:
            clock = self._begin()
            clock.cancel = cancel
            encoded = self._reader.encode(image, clock)
            asked = prompt if isinstance(prompt, list | tuple) else [prompt]
            ready = [self._reader.prompt(encoded, words) for words in asked]
            known: list[Answer | None] = [*earlier, *[None] * len(asked)]
            rules = self._reader.rules(encoded) if constrained else None
            held = [self._held(rules, words, before) for words, before in zip(asked, known, strict=False)]
            for start in range(0, len(asked), MOST_TOGETHER):
                part = slice(start, start + MOST_TOGETHER)
                answers += self._read_all(encoded, ready[part], max_new_tokens, clock, held[part])
                clock = Clock(time.perf_counter(), cancel=cancel)
        return answers if isinstance(prompt, list | tuple) else answers[0]

    def ask(self, image: ImageSource | None, question: str, *, max_new_tokens: int = 256) -> str:
        """Answer a question about an image (None: about no image) in words. Raises as `ground`."""
        with self._lock:
            return "".join(self.stream(image, question, max_new_tokens=max_new_tokens)).strip()

    def stream(
        self,
        image: ImageSource | None,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        probabilities: bool = False,
        keep_control: bool = False,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Give the reply to the user's whole words piece by piece, as it is generated.

        The next call of the session ends a stream, which then raises `InputError` when it is read on.

        Args:
            image: as in `ground`, or None for a question about no image.
            prompt: the words.
            max_new_tokens: longest answer.
            probabilities: whether the stream's `tokens` have theirs, where the engine tells.
            keep_control: whether control tokens stay in the text, with which some families write boxes.
            cancel: set by another thread, it ends the stream before the next token.

        Raises:
            ImageError: as `ground`.
            InputError: as `ground`.
            Cancelled: `cancel` was set; also when the stream is read on.
        """
        with self._lock:
            clock = self._begin()
            clock.cancel = cancel
            encoded = None if image is None else self._reader.encode(image, clock)
            ready = self._reader.prompt(encoded, prompt)
            steps = self._reader.generate(ready, encoded, max_new_tokens, clock, probabilities=probabilities)
            tokens: list[Token] = []
            pieces = self._pieces(steps, self._turn, clock, tokens, keep_control)
            return Stream(pieces, len(ready.token_ids), tokens, clock.timings)

    def _begin(self) -> Clock:
        """Start a call, which ends a stream that is still open."""
        if self._closed:
            raise InputError("the session is closed", hint="load the bundle again")
        self._turn += 1
        return Clock(time.perf_counter())

    def _held(self, rules: Rules | None, prompt: str, earlier: Answer | None) -> Held | None:
        """What a reply is held to, where the words ask for boxes and there are rules for them."""
        phrase = self.bundle.phrase(prompt)
        if phrase is None or rules is None:
            return None
        return rules, self._reader.draft(rules, phrase, None if earlier is None else earlier.text)

    def _read(
        self, encoded: EncodedImage, ready: Prompt, max_new_tokens: int, clock: Clock, held: Held | None = None
    ) -> Answer:
        """Generate a reply and read it as boxes."""
        steps = list(self._reader.generate(ready, encoded, max_new_tokens, clock, probabilities=True, held=held))
        return self._parsed(encoded, ready, steps, clock.timings())

    def _read_all(
        self,
        encoded: EncodedImage,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        clock: Clock,
        held: Sequence[Held | None],
    ) -> list[Answer]:
        """Generate replies and read them as boxes: side by side where the engine can, else one after the other."""
        together = [each for each in held if each is not None]
        if len(prompts) > 1 and len(together) == len(prompts) and self._reader.together:
            written = self._reader.generate_together(prompts, encoded, max_new_tokens, clock, together)
            shares = clock.timings().shared([count for _, count in written], prompts[0].shared)
            steps = [answer for answer, _ in written]
            return [self._parsed(encoded, *answer) for answer in zip(prompts, steps, shares, strict=True)]
        answers = []
        for ready, each in zip(prompts, held, strict=True):
            answers.append(self._read(encoded, ready, max_new_tokens, clock, each))
            clock = Clock(time.perf_counter(), cancel=clock.cancel)
        return answers

    def _parsed(self, encoded: EncodedImage, ready: Prompt, steps: Sequence[Step], timings: Timings) -> Answer:
        """Read generated tokens as boxes."""
        # Some families write boxes with control tokens, so these stay in the text.
        decode = partial(self._reader.text, keep_control=True)
        ids = [step.token for step in steps]
        known = [step.probability for step in steps if step.probability is not None]
        before = self.bundle.chat.before_answer
        tokens = token_probabilities(ids, known, decode, before) if len(known) == len(ids) else []
        text = decode(ids).removeprefix(before)
        parsed = parse(text, encoded.geometry, self.bundle.box_format, tokens)
        return Answer.of(parsed, timings, len(ready.token_ids))

    def _pieces(
        self, steps: Iterator[Step], turn: int, clock: Clock, tokens: list[Token], keep_control: bool
    ) -> Generator[str, None, Timings]:
        """The text of steps, taken one by one under the lock while no later call has begun; returns the cost."""
        decode = partial(self._reader.text, keep_control=keep_control)
        text = TextStream(decode, self.bundle.chat.before_answer)
        while True:
            with self._lock:
                if turn != self._turn:
                    raise InputError(
                        "this stream was ended by a later call of its session",
                        hint="read a stream to its end first, or load a second session",
                    )
                step = next(steps, None)
            if step is None:
                break
            said = self._reader.text([step.token], keep_control=True)
            tokens.append(Token(said.encode("utf-8", "replace"), step.probability))
            if piece := text.push(step.token):
                yield piece
        timings = clock.timings()
        if piece := text.finish():
            yield piece
        return timings
