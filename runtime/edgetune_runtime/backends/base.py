"""What an engine is: one checked base for all of them, so that each override computes and need not ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.values import Arrays, Float, ImageFeatures, Int, ModelShape, Saved
from edgetune_runtime.errors import BundleError, InputError

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle


class Backend(ABC):
    """One loaded model and one sequence in its KV cache.

    Examples:
        >>> import numpy as np
        >>> from edgetune_runtime import Bundle
        >>> from edgetune_runtime.backends import load_backend
        >>> engine = load_backend(Bundle.load("runs/onnx-int4"))
        >>> engine.reserve(2)
        >>> logits = engine.forward(engine.embed(np.array([1, 2])), np.array([[0, 1]] * 3))
        >>> engine.formats, engine.length, len(logits) == engine.shape.vocabulary
        (('onnx',), 2, True)

    Public methods check shapes, dtypes and state; engines override the methods that end in `_impl`, which may rely on
    it. An engine serves one thread at a time.

    Args:
        shape: sizes of what was loaded.

    Attributes:
        formats: the formats of bundles that the engine reads.
        speculates: whether tokens that are only expected are worth reading: several take about as long as one, and
            `rewind` can go back to any length.
        branches: whether several continuations of one beginning can be read side by side, see `branches_at`.
        answer_tokens: int64 [N], of which `answers_at` gives logits; `load_backend` takes them from the bundle.
        length: tokens in the sequence so far.
        capacity: tokens that the sequence was given room for.
    """

    formats: ClassVar[tuple[str, ...]] = ()
    speculates: bool = False
    branches: bool = False

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._trunk, self._owners = 0, np.array([], np.int64)
        self.answer_tokens: Int = np.array([], np.int64)
        self.length = 0
        self.capacity = 0
        self._closed = False

    @classmethod
    def load(cls, bundle: Bundle, *, device: str, threads: int | None) -> Backend:
        """Load a bundle of one of `formats`; `load_backend` calls it with arguments that it has checked.

        Args:
            bundle: what to run.
            device: "cpu", "cuda" or "cuda:N".
            threads: CPU threads; None leaves the choice to the engine.

        Raises:
            InputError: the engine does not run this bundle in this way.
            BundleError: a file of the bundle does not load.
            MissingDependency: something that the engine needs is not installed.
        """
        raise InputError(f"{cls.__name__} is not loaded from bundles: it claims no format")

    def encode_images(self, images: Arrays) -> ImageFeatures:
        """Run the vision encoder.

        Args:
            images: what `Preprocessing.encoder_arrays` gives for the bundle's rule, of one image or several, made of
                raw `arrays` where the shape says `raw_pixels`.

        Returns:
            Features of all image tokens, in the order of the images.

        Raises:
            InputError: the arrays do not fit each other or the model.
            BundleError: the encoder's features do not fit the decoder.
        """
        self._require_open()
        pixels, grids = images["pixel_values"], images.get("image_grid_thw")
        wanted = np.uint8 if self.shape.raw_pixels else np.float32
        if pixels.dtype != wanted:
            raise InputError(f"pixel_values must be {wanted.__name__} for this encoder, got {pixels.dtype}")
        if grids is not None:
            if grids.dtype != np.int64 or grids.ndim != 2 or grids.shape[1:] != (3,) or not len(grids):
                raise InputError(f"image_grid_thw must be int64 [N, 3], got {grids.dtype} {list(grids.shape)}")
            rows, width = int(grids.prod(axis=1).sum()), self.shape.pixels
            if pixels.ndim != 2 or len(pixels) != rows or width not in (None, pixels.shape[1]):
                shape = f"[{rows}, {'C' if width is None else width}]"
                raise InputError(f"pixel_values must be {shape} for the images' grids, got {list(pixels.shape)}")
        features = self.encode_images_impl(images)
        hidden, arrays = self.shape.hidden, (features.embeddings, *features.deepstack)
        if len(features.deepstack) != self.shape.deepstack or any(array.shape[1:] != (hidden,) for array in arrays):
            raise BundleError(
                f"the vision encoder gives features of shapes {', '.join(str(list(array.shape)) for array in arrays)}, "
                f"but the decoder takes {1 + self.shape.deepstack} of [tokens, {hidden}]",
                hint="export the bundle again",
            )
        return features

    def embed(self, token_ids: Int) -> Float:
        """Return embeddings float32 [S, H] of token ids int64 [S].

        Raises:
            InputError: the ids are no such array, or outside the vocabulary.
        """
        self._require_open()
        if token_ids.dtype != np.int64 or token_ids.ndim != 1 or not len(token_ids):
            raise InputError(f"token ids must be int64 [S], got {token_ids.dtype} {list(token_ids.shape)}")
        if not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.shape.vocabulary:
            raise InputError(f"token ids must be from 0 to {self.shape.vocabulary - 1}")
        return self.embed_impl(token_ids)

    def reserve(self, length: int) -> None:
        """Start an empty sequence with room for `length` tokens.

        Raises:
            InputError: the length is not positive, or more than the engine can hold.
        """
        self._require_open()
        if length < 1:
            raise InputError(f"a sequence needs room for at least 1 token, not {length}")
        self.length = self.capacity = 0
        self.reserve_impl(length)
        self.capacity = length

    def forget(self) -> None:
        """End the sequence, whose memory an engine may give back; the next one begins with `reserve`."""
        self._require_open()
        self.length = self.capacity = 0
        self.forget_impl()

    def keep(self) -> None:
        """Remember the end of the sequence as a place that `rewind` may go back to, besides those it can anyway.

        A cache of keys and values can be cut anywhere. States of linear attention have no past: they are copied here.
        """
        self._require_open()
        self.keep_impl()

    def rewind(self, length: int) -> bool:
        """Go back to the first `length` tokens of the sequence, where the engine can.

        Returns:
            Whether the sequence now ends there; else it is as it was.

        Raises:
            InputError: it is not that long.
        """
        self._require_open()
        if not 0 < length <= self.length:
            raise InputError(f"a sequence of {self.length} tokens cannot go back to {length}")
        if length < self.length and not self.rewind_impl(length):
            return False
        self.length = length
        return True

    def save(self, length: int) -> Saved | None:
        """Copy the first `length` tokens of the sequence, to which `rewind` could go back; None where that cannot be.

        Raises:
            InputError: it is not that long.
        """
        self._require_open()
        if not 0 < length <= self.length:
            raise InputError(f"a sequence of {self.length} tokens has no first {length}")
        arrays = self.save_impl(length)
        return None if arrays is None else Saved(length, arrays)

    def restore(self, saved: Saved, room: int) -> None:
        """Begin a sequence with tokens that were saved from this engine, and room for `room` more.

        Raises:
            InputError: the engine cannot hold so many.
        """
        self.reserve(saved.length + room)
        self.restore_impl(saved)
        self.length = saved.length

    def forward(self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = ()) -> Float:
        """Append tokens to the sequence and return the logits of the last one.

        Args:
            embeddings: float32 [S, H].
            positions: int64 [3, S].
            deepstack: float32 [S, H] for each DeepStack layer; none means zeros (no image among the tokens).

        Returns:
            float32 [V]; valid until the next call.

        Raises:
            InputError: a shape or dtype is wrong, or the tokens exceed the room that was reserved.
        """
        count = self._check(embeddings, positions, deepstack)
        logits = self.forward_impl(embeddings, positions, deepstack)
        self.length += count
        return logits

    def read_pictures(self, token_ids: Int, positions: Int, image_token: int, image: ImageFeatures) -> None:
        """Append a part of a prompt in which image features stand in the places of image tokens.

        Args:
            token_ids: int64 [S].
            positions: int64 [3, S].
            image_token: id of the tokens whose places they are.
            image: features, as many as there are places.

        Raises:
            InputError: as `embed` and `forward`, or there are more or fewer places than features.
        """
        self._require_open()
        places = token_ids == image_token
        if int(places.sum()) != len(image.embeddings):
            raise InputError(f"{int(places.sum())} image tokens for {len(image.embeddings)} features of images")
        self._require_room(len(token_ids))
        start = self.length
        self.read_pictures_impl(token_ids, positions, places, image)
        self.length = start + len(token_ids)

    def forward_at(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = (), *, at: Sequence[int]
    ) -> Float:
        """Append tokens to the sequence and return the logits after some of them.

        Args:
            embeddings: as of `forward`.
            positions: as of `forward`.
            deepstack: as of `forward`.
            at: the numbers of those tokens among the S, ascending; there may be none.

        Returns:
            float32 [len(at), V]; valid until the next call.

        Raises:
            InputError: as `forward`, or a number is not that of a token.
        """
        return self._told_at(self.forward_at_impl, embeddings, positions, deepstack, at)

    def answers_at(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = (), *, at: Sequence[int]
    ) -> Float:
        """As `forward_at`, but of `answer_tokens` alone: float32 [len(at), N].

        An engine need not read the head's other rows for it.
        """
        return self._told_at(self.answers_at_impl, embeddings, positions, deepstack, at)

    def _told_at(
        self,
        append: Callable[[Float, Int, Sequence[Float], tuple[int, ...]], Float],
        embeddings: Float,
        positions: Int,
        deepstack: Sequence[Float],
        at: Sequence[int],
    ) -> Float:
        """Append tokens by one of an engine's ways, which may itself go on in several calls, and return its logits."""
        count = self._check(embeddings, positions, deepstack)
        rows, start = _rows(at, count), self.length
        logits = append(embeddings, positions, deepstack, rows)
        self.length = start + count
        return logits

    def branch(self, trunk: int) -> None:
        """Go back to the first `trunk` tokens of the sequence, behind which `branches_at` reads several continuations.

        Raises:
            InputError: the sequence is not that long, or the engine cannot branch.
        """
        if not self.branches or not self.rewind(trunk):
            raise InputError("this engine reads one continuation of a sequence at a time")
        self._trunk, self._owners = trunk, np.array([], np.int64)

    def branches_at(self, embeddings: Float, positions: Int, owners: Int, *, at: Sequence[int], answers: bool) -> Float:
        """Append tokens of several continuations of the first tokens, and return the logits after some of them.

        A token sees the beginning that `branch` went back to, and behind that what is of its own continuation.

        Args:
            embeddings: as of `forward`.
            positions: as of `forward`; each continuation counts on from the beginning by itself.
            owners: int64 [S], the number of each token's continuation, from 0.
            at: as of `forward_at`.
            answers: whether the logits are those of `answers_at`.

        Raises:
            InputError: as `forward_at`, or there is not a continuation for each token.
        """
        count = self._check(embeddings, positions, ())
        if owners.shape != (count,) or owners.dtype != np.int64 or int(owners.min()) < 0:
            raise InputError(f"owners must be int64 [{count}] of at least 0, got {owners.dtype} {list(owners.shape)}")
        rows, start = _rows(at, count), self.length
        everyone = np.concatenate([self._owners, owners])
        sees = np.ones((count, start + count), bool)
        sees[:, self._trunk :] = owners[:, None] == everyone
        logits = self.branches_at_impl(embeddings, positions, sees, rows, answers)
        self.length, self._owners = start + count, everyone
        return logits

    def drop(self, tokens: Sequence[int]) -> None:
        """Let no later token see these ones, which `branches_at` has read, by their numbers from the end."""
        self._owners[list(tokens)] = -1

    def _check(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> int:
        """The number of tokens that can be appended; raises what `forward` does."""
        self._require_open()
        count = len(embeddings)
        for name, array in (("embeddings", embeddings), *(("deepstack", features) for features in deepstack)):
            if array.dtype != np.float32 or not count or array.shape != (count, self.shape.hidden):
                wanted = f"float32 [S, {self.shape.hidden}]"
                raise InputError(f"{name} must be {wanted}, got {array.dtype} {list(array.shape)}")
        if positions.dtype != np.int64 or positions.shape != (3, count):
            raise InputError(f"positions must be int64 [3, {count}], got {positions.dtype} {list(positions.shape)}")
        if len(deepstack) not in (0, self.shape.deepstack):
            raise InputError(f"the model takes {self.shape.deepstack} DeepStack arrays or none, got {len(deepstack)}")
        self._require_room(count)
        return count

    def close(self) -> None:
        """Give the engine's memory back; it takes no further calls. Closing twice is no error."""
        if not self._closed:
            self._closed = True
            self.close_impl()

    @abstractmethod
    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """As `encode_images`."""

    @abstractmethod
    def embed_impl(self, token_ids: Int) -> Float:
        """As `embed`."""

    @abstractmethod
    def reserve_impl(self, length: int) -> None:
        """As `reserve`."""

    def forget_impl(self) -> None:  # noqa: B027 - what the next `reserve` reuses may stay
        """As `forget`; nothing by default."""

    def keep_impl(self) -> None:  # noqa: B027 - an engine that cuts its cache anywhere has nothing to remember
        """As `keep`; nothing by default."""

    def rewind_impl(self, length: int) -> bool:
        """As `rewind`, to less than there is; by default an engine cannot."""
        return False

    def save_impl(self, length: int) -> tuple[npt.NDArray[Any], ...] | None:
        """As `save`; by default an engine cannot."""
        return None

    def restore_impl(self, saved: Saved) -> None:
        """As `restore`, after `reserve`; called with what `save_impl` gave."""
        raise NotImplementedError

    @abstractmethod
    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """As `forward`; the sequence has `length` tokens before."""

    def read_pictures_impl(
        self, token_ids: Int, positions: Int, places: npt.NDArray[np.bool_], image: ImageFeatures
    ) -> None:
        """As `read_pictures`; `places` [S] are those of the features. By default they are put there on the host."""
        embeddings = self.embed(token_ids)
        embeddings[places] = image.embeddings
        deepstack = []
        for features in image.deepstack:
            dense = np.zeros_like(embeddings)
            dense[places] = features
            deepstack.append(dense)
        self.forward_at(embeddings, positions, deepstack, at=())

    def forward_at_impl(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float], at: tuple[int, ...]
    ) -> Float:
        """As `forward_at`; by default a call for each of the wanted tokens."""
        rows, start = [], 0
        for end in (*at, *([] if at[-1:] == (len(embeddings) - 1,) else [len(embeddings) - 1])):
            part = slice(start, end + 1)
            rows.append(self.forward(embeddings[part], positions[:, part], [array[part] for array in deepstack]).copy())
            start = end + 1
        return np.stack(rows)[: len(at)]

    def answers_at_impl(
        self, embeddings: Float, positions: Int, deepstack: Sequence[Float], at: tuple[int, ...]
    ) -> Float:
        """As `answers_at`; by default what `forward_at_impl` gives of these tokens."""
        return self.forward_at_impl(embeddings, positions, deepstack, at)[:, self.answer_tokens]

    def branches_at_impl(
        self,
        embeddings: Float,
        positions: Int,
        sees: npt.NDArray[np.bool_],
        at: tuple[int, ...],
        answers: bool,
    ) -> Float:
        """As `branches_at`; `sees` [S, T] tells which of all tokens up to itself each new one sees."""
        raise NotImplementedError

    def close_impl(self) -> None:  # noqa: B027 - most engines have nothing to do
        """As `close`; nothing by default, for most memory goes with its Python object."""

    def _require_room(self, count: int) -> None:
        if self.length + count > self.capacity:
            needed = self.length + count
            raise InputError(f"{needed} tokens in a cache of {self.capacity}", hint="reserve more")

    def _require_open(self) -> None:
        if self._closed:
            raise InputError("the engine was closed")


def _rows(at: Sequence[int], count: int) -> tuple[int, ...]:
    """The numbers of tokens among `count`, checked."""
    rows = tuple(int(number) for number in at)
    if any(not low < number < count for low, number in zip((-1, *rows), rows, strict=False)):
        raise InputError(f"rows must be ascending numbers of {count} tokens, got {list(rows)}")
    return rows


class GreedyBackend(Backend):
    """An engine that also chooses tokens, so that logits need not leave its device."""

    def greedy(self, token: int, position: int, *, count: int, stop: Collection[int]) -> list[int]:
        """Append `token` at a position (on all three axes) and the most likely tokens after it, the last one excepted.

        Returns:
            At most `count` tokens, up to and including the first of `stop`; at least one.

        Raises:
            InputError: `count` is not positive, or more than there is room for.
        """
        self._require_open()
        if count < 1:
            raise InputError(f"at least 1 token must be asked for, not {count}")
        self._require_room(count)
        tokens = self.greedy_impl(token, position, count, stop)
        self.length += len(tokens)
        return tokens

    @abstractmethod
    def greedy_impl(self, token: int, position: int, count: int, stop: Collection[int]) -> list[int]:
        """As `greedy`."""
