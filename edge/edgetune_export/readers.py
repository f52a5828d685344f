"""Which engines read which quantized checkpoints: the facts, and what follows from them for one weight set.

An engine is listed with the version that the facts are about and how they are known: it was run (docs/peers.md), or its
released code was read. Nothing else in the project knows what an engine refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgetune_core.weightset import HEAD
from edgetune_export.formats import CHECKPOINTS
from edgetune_runtime.quant.blocks import BlockFormat

Formats = Mapping[str, BlockFormat]
"""Name of each quantized linear layer in transformers, and its format."""


QWEN = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
EVERY = (*QWEN, "qwen3_5", "internvl", "llava", "llava_onevision", "smolvlm", "idefics3", "lfm2_vl")


@dataclass(frozen=True)
class Accepts:
    """What a reader takes of one format.

    Attributes:
        bits: of a weight.
        groups: weights that share a scale.
        zero_points: whether layers may have zero points.
        mixed: whether layers may differ in bits, group size or zero points.
        head: whether the language model head may be quantized.
        families: of models that it reads in this format; None is all that it was asked about.
        but: families that it does not.
    """

    bits: tuple[int, ...] = (4, 8)
    groups: tuple[int, ...] = (32, 64, 128)
    zero_points: bool = True
    mixed: bool = True
    head: bool = True
    families: tuple[str, ...] | None = None
    but: tuple[str, ...] = ()

    def refusal(self, formats: Formats, family: str | None) -> str | None:
        """Why layers of these formats are not read, None where they are; without a family whatever it is."""
        if family is not None and (family in self.but or family not in (self.families or (family,))):
            return f"model family {family}"
        found = list(dict.fromkeys(formats.values()))
        for fmt in found:
            if fmt.bits not in self.bits:
                return f"weights of {fmt.bits} bits"
            if fmt.block not in self.groups:
                return f"groups of {fmt.block}"
            if not fmt.symmetric and not self.zero_points:
                return "zero points"
        if len(found) > 1 and not self.mixed:
            return "layers of different formats"
        return "a quantized head" if HEAD in formats and not self.head else None


@dataclass(frozen=True)
class Reader:
    """An engine that loads checkpoints of others.

    Attributes:
        title: its name for people.
        version: that the facts are about.
        ran: whether it was run; else its code was read.
        server: whether it serves models.
        formats: what it takes of each format that it reads.
        asked: model families that it was run with, or whose code in it was read; of others nothing is said.
        only_names: the one kind of tensors' names that it finds, where it does not find both.
        hub_only: families of which it finds hub names alone, where it finds both of others.
    """

    title: str
    version: str
    ran: bool
    server: bool
    formats: Mapping[str, Accepts] = field(hash=False)
    asked: tuple[str, ...] = QWEN
    only_names: str | None = None
    hub_only: tuple[str, ...] = ()

    def names_of(self, family: str | None) -> str | None:
        """The one kind of tensors' names that it finds in a family's checkpoint, None where it finds both."""
        return "hub" if family in self.hub_only else self.only_names

    def refusal(self, format_: str, formats: Formats, family: str | None, names: str | None) -> str | None:
        """Why a checkpoint is not read, None where it is.

        Args:
            format_: "gptq", "awq" or "compressed-tensors".
            formats: of its quantized layers.
            family: name of its model family; None for what is true of any.
            names: of its tensors, "hub" or "transformers"; None where both are the same.
        """
        if format_ not in self.formats:
            return f"format {format_}"
        if names is not None and self.names_of(family) not in (None, names):
            return f"{names} names of tensors"
        found = self.formats[format_].refusal(formats, family)
        return None if found is None else f"{found} in format {format_}"

    @property
    def name(self) -> str:
        """Title and version."""
        return f"{self.title} {self.version}"


READERS = (
    Reader(
        "vLLM",
        "0.32.0",
        ran=True,
        server=True,
        asked=EVERY,
        # It looks for gptq's layers by full names, and has another one for LFM2-VL's language model than tensors have.
        formats={
            "gptq": Accepts(zero_points=False, but=("lfm2_vl",)),
            "awq": Accepts(bits=(4,), mixed=False, head=False),
            "compressed-tensors": Accepts(),
        },
        hub_only=("lfm2_vl",),
    ),
    Reader(
        "SGLang",
        "0.5.23",
        ran=False,
        server=True,
        # Zero points and 3 bits of GPTQ run with its older kernel, which needs --dtype float16.
        formats={
            "gptq": Accepts(bits=(3, 4, 8)),
            "awq": Accepts(bits=(4,), mixed=False, head=False),
            "compressed-tensors": Accepts(),
        },
        only_names="hub",
    ),
    Reader(
        "LMDeploy",
        "0.18.0",
        ran=False,
        server=True,
        # Its TurboMind has no Qwen3-VL, and its PyTorch engine reads no format but AWQ.
        formats={
            "gptq": Accepts((4,), (128,), zero_points=False, mixed=False, head=False, families=("qwen2_5_vl",)),
            "awq": Accepts((4,), (128,), mixed=False, head=False),
            "compressed-tensors": Accepts((4,), (32, 128), mixed=False, head=False, families=("qwen2_5_vl",)),
        },
        only_names="hub",
    ),
    Reader(
        "transformers",
        "5.23",
        ran=True,
        server=False,
        asked=EVERY,
        formats={
            "gptq": Accepts(bits=(3, 4, 8), mixed=False, head=False),
            "awq": Accepts(bits=(4,), mixed=False, head=False),
            # The library wraps this family's model and hands it plain dicts in place of its tower's outputs.
            "compressed-tensors": Accepts(zero_points=False, but=("llava_onevision",)),
        },
    ),
    Reader(
        "GPTQModel",
        "7.4.0",
        ran=True,
        server=False,
        asked=EVERY,
        # It has no definition of the others. That of Qwen3.5 leaves two linears of a delta net unquantized, which are
        # quantized here, and computes with whatever stands in their places, without an error.
        formats={
            "gptq": Accepts(bits=(3, 4, 8), families=(*QWEN, "lfm2_vl")),
            "awq": Accepts(bits=(4,), mixed=False, head=False, families=(*QWEN, "lfm2_vl")),
        },
        only_names="transformers",
    ),
)


def readers_of(format_: str, formats: Formats, family: str, names: str | None) -> dict[str, Any]:
    """The manifest's "readers": who reads a checkpoint, and what the others refuse.

    Args:
        format_: "gptq", "awq" or "compressed-tensors".
        formats: of its quantized layers.
        family: name of its model family.
        names: of its tensors, "hub" or "transformers"; None where both are the same.

    Returns:
        "read": names of engines; "refuse": by name of the engine "why", the "hint" what it would read, and whether it
        is a "server"; "unknown": engines that read the format, but were not asked about the family.
    """
    told: dict[str, Any] = {"read": [], "refuse": {}, "unknown": []}
    for reader in READERS:
        asked = family if family in reader.asked else None
        why = reader.refusal(format_, formats, asked, names)
        if why is None:
            told["unknown" if asked is None else "read"].append(reader.name)
        else:
            hint = _hint(reader, format_, formats, asked, names)
            told["refuse"][reader.name] = {"why": why, "hint": hint, "server": reader.server}
    return told


def _hint(reader: Reader, format_: str, formats: Formats, family: str | None, names: str | None) -> str:
    """How to get something that a reader takes in place of what it refuses."""
    if format_ in reader.formats and reader.formats[format_].refusal(formats, family) is None:
        return f"export with --names {reader.names_of(family)}"
    ways = [other for other in CHECKPOINTS if reader.refusal(other, formats, family, names) is None]
    hint = (
        f"export --format {' or '.join(ways)}" if ways else "calibrate 4 bits in groups of 128 and leave the head out"
    )
    symmetric = {name: replace(fmt, symmetric=True) for name, fmt in formats.items()}
    if reader.refusal(format_, symmetric, family, names) is None:
        hint += ", or calibrate with --symmetric"
    return hint


def server_format(formats: Formats, family: str) -> str:
    """The format in which most servers read these layers; where as many do, most of those that were not asked."""
    servers = [reader for reader in READERS if reader.server]

    def read_by(format_: str) -> tuple[int, int]:
        read = [reader for reader in servers if reader.refusal(format_, formats, family, "hub") is None]
        return sum(family in reader.asked for reader in read), len(read)

    return max(CHECKPOINTS, key=read_by)
