"""Pictures that are the same or nearly so, and the groups that they form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_BIT_COUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
_BLOCK = 1 << 23  # pairs compared at a time


def near_pairs(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], near: int) -> list[tuple[int, int, int]]:
    """Return (row of left, row of right, differing bits) of all pairs that differ in at most `near` bits.

    Args:
        left: perceptual hashes, uint8 [N, 8].
        right: perceptual hashes, uint8 [M, 8].
        near: bits of 64.
    """
    pairs: list[tuple[int, int, int]] = []
    rows = max(1, _BLOCK // max(1, len(right)))
    for start in range(0, len(left), rows):
        differing = np.zeros((len(left[start : start + rows]), len(right)), dtype=np.uint8)
        for byte in range(left.shape[1]):
            differing += _BIT_COUNT[left[start : start + rows, None, byte] ^ right[None, :, byte]]
        for row, column in np.argwhere(differing <= near):
            pairs.append((start + int(row), int(column), int(differing[row, column])))
    return pairs


def stack(hashes: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return hashes as one array, uint8 [N, 8]."""
    rows = list(hashes)
    return np.stack(rows) if rows else np.zeros((0, 8), dtype=np.uint8)


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the connected groups of `count` things, each sorted, in the order of their first members."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in pairs:
        a, b = root(first), root(second)
        parent[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for index in range(count):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def clusters(hashes: Sequence[npt.NDArray[np.uint8]], near: int) -> list[list[int]]:
    """Return groups of hashes that are linked by steps of at most `near` bits."""
    rows = stack(hashes)
    return groups(len(rows), ((i, j) for i, j, _ in near_pairs(rows, rows, near) if i < j))


def leaders(hashes: npt.NDArray[np.uint8], near: int) -> npt.NDArray[np.int64]:
    """Return for each hash the first leader that differs from it in at most `near` bits; a hash without one leads.

    Unlike the groups of `clusters`, nothing is further from its leader than that, however slowly a film changes; and
    memory grows with the hashes, not with their pairs.

    Args:
        hashes: uint8 [N, 8], those that should lead first.
        near: bits of 64.

    Returns:
        Row of the leader of each row, int64 [N]; a leader's is its own.
    """
    found = np.empty(len(hashes), dtype=np.int64)
    leading = np.empty_like(hashes)
    rows: list[int] = []
    for row, own in enumerate(hashes):
        differing = _BIT_COUNT[leading[: len(rows)] ^ own].sum(axis=1)
        close = np.flatnonzero(differing <= near)
        found[row] = rows[close[0]] if len(close) else row
        if not len(close):
            leading[len(rows)] = own
            rows.append(row)
    return found
