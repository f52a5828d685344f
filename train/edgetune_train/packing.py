"""Packing: samples of different lengths laid into sequences of one length, so that no step computes on padding.

Lengths are those of the prepared samples, which know their image tokens from the images' headers. A window of the
shuffled samples is packed by best fit decreasing (Johnson 1974): longest first, each into the fullest sequence that
still takes it. That wastes little and, window by window, keeps the order random.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from edgetune_core.conversation import Sample
from edgetune_runtime.errors import InputError
from edgetune_train.batch import Pack

WINDOW = 1024  # samples that are packed together


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins of indices into `lengths`, each bin's sum at most `capacity`, by best fit decreasing.

    Args:
        lengths: each at most `capacity`.
        capacity: what a bin holds.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[index], -1))
        if place == len(free):
            insort(free, (capacity - lengths[index], len(bins)))
            bins.append([index])
        else:
            room, chosen = free.pop(place)
            insort(free, (room - lengths[index], chosen))
            bins[chosen].append(index)
    return bins


class Packs(Dataset[Pack]):
    """The packs of a training set, drawn anew for each epoch; the same seed gives the same ones.

    Every epoch has the same number of packs, a multiple of `processes`: a trainer counts its steps ahead and
    gives every process as many. Epochs that could do with fewer have some packs divided.

    Args:
        samples: what to pack.
        length: tokens that a pack takes.
        seed: of the order.
        epochs: how many epochs there will be.
        processes: how many processes share them.

    Attributes:
        length: tokens that a pack takes.
        records: how many samples an epoch has.
        utilization: share of the packs' room that tokens fill, 0 to 1.

    Raises:
        InputError: a sample is longer than a pack, or there are fewer samples than processes.
    """

    def __init__(self, samples: Sequence[Sample], length: int, *, seed: int, epochs: int, processes: int = 1) -> None:
        self._samples = samples
        self._lengths = np.array([len(sample.ids) for sample in samples])
        longest = int(self._lengths.argmax())
        if self._lengths[longest] > length:
            source, most = samples[longest].record.source, int(self._lengths[longest])
            raise InputError(
                f"{source}: takes {most} tokens, more than --pack {length}",
                hint=f"--pack {most} or more, or a lower pixel limit in the checkpoint's preprocessor_config.json",
            )
        self.length = length
        self.records = len(samples)
        self._seed = seed
        most = max(len(self._plan(epoch)) for epoch in range(epochs))
        self._count = -(-most // processes) * processes
        if self._count > len(samples):
            raise InputError(f"{len(samples)} records are too few for {processes} processes")
        self.utilization = float(self._lengths.sum() / (self._count * length))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Pack for an epoch, counted from 0."""
        self._packs = _divided(self._plan(epoch), self._count)

    def padded_utilization(self, batch_size: int) -> float:
        """Return the share of tokens that are no padding in random batches, each as long as its longest sample."""
        order = np.random.default_rng([self._seed, 0]).permutation(self._lengths)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return float(order.sum() / sum(len(batch) * batch.max() for batch in batches))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Pack:
        return tuple(self._samples[i] for i in self._packs[index])

    def _plan(self, epoch: int) -> list[list[int]]:
        """Return the packs of an epoch as indices of samples, in random order, as few as they come."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(self._lengths))
        packs = []
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            found = best_fit(self._lengths[window].tolist(), self.length)
            packs += [window[chosen].tolist() for chosen in found]
        generator.shuffle(packs)
        return packs


def _divided(packs: list[list[int]], count: int) -> list[list[int]]:
    """Return the packs with those of most samples cut in two until there are `count`."""
    packs = list(packs)
    while len(packs) < count:
        largest = max(range(len(packs)), key=lambda i: len(packs[i]))
        whole = packs[largest]
        packs[largest] = whole[: len(whole) // 2]
        packs.append(whole[len(whole) // 2 :])
    return packs
