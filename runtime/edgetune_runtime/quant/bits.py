"""Codes of a few bits as a dense little-endian bit stream in 32-bit words: how GPTQ and compressed-tensors pack.

Code i takes bits `i·b .. i·b + b - 1` of its row, counted from the lowest bit of the first word; 32 codes fill b words,
so that a code may lie across two words when b does not divide 32 (3 bits).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetune_runtime.quant.blocks import Codes, pack_nibbles, unpack_nibbles

Words = npt.NDArray[np.int32]

_WORD = np.dtype("<i4")


def words_fit(count: int, bits: int) -> bool:
    """Whether `count` codes fill whole words."""
    return count * bits % 32 == 0


def pack_words(codes: Codes, bits: int) -> Words:
    """int32 [..., n·bits / 32] of codes uint8 [..., n]; n·bits must be a multiple of 32."""
    if bits == 8:
        stream = codes
    elif bits == 4:
        stream = pack_nibbles(codes)
    else:
        single = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
        stream = np.packbits(single.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(stream).view(_WORD).astype(np.int32, copy=False)


def unpack_words(words: Words, bits: int) -> Codes:
    """uint8 [..., n] of the codes in int32 [..., n·bits / 32]."""
    return unpack_bytes(word_bytes(words), bits)


def word_bytes(words: Words) -> Codes:
    """The words' bytes in the order of the stream: uint8 [..., 4·n] of int32 [..., n]."""
    return np.ascontiguousarray(words).astype(_WORD, copy=False).view(np.uint8)


def unpack_bytes(stream: Codes, bits: int) -> Codes:
    """uint8 [..., n] of the codes in the bytes [..., n·bits / 8] of a stream."""
    if bits == 8:
        return stream
    if bits == 4:
        return unpack_nibbles(stream)
    single = np.unpackbits(stream, axis=-1, bitorder="little").reshape(*stream.shape[:-1], -1, bits)
    return np.packbits(single, axis=-1, bitorder="little")[..., 0]
