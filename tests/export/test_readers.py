"""Who is said to read a bundle, beside what its readers' own code accepts."""

from __future__ import annotations

import pytest

from edgetune_export.readers import READERS, readers_of, server_format
from edgetune_runtime.quant.blocks import BlockFormat

G128 = BlockFormat(4, 128, symmetric=False)
SYMMETRIC = BlockFormat(4, 128, symmetric=True)
THREE = BlockFormat(3, 128, symmetric=True)
G64 = BlockFormat(4, 64, symmetric=False)
EIGHT = BlockFormat(8, 128, symmetric=True)


def servers(format_: str, *formats: BlockFormat, names: str | None = None, head: BlockFormat | None = None) -> set[str]:
    """Titles of the servers that read layers of these formats."""
    layers = {f"layers.{number}": fmt for number, fmt in enumerate(formats)} | ({"lm_head": head} if head else {})
    read = readers_of(format_, layers, names)["read"]
    return {reader.title for reader in READERS if reader.server and reader.name in read}


@pytest.mark.parametrize(
    ("format_", "formats", "expected"),
    [
        # vLLM's AutoGPTQConfig.TYPE_MAP has (4, symmetric) and (8, symmetric) alone; LMDeploy's converter wants `sym`
        ("gptq", [G128], {"SGLang"}),
        ("gptq", [SYMMETRIC], {"vLLM", "SGLang", "LMDeploy"}),
        ("gptq", [THREE], {"SGLang"}),
        ("gptq", [EIGHT, SYMMETRIC], {"vLLM"}),
        ("awq", [G128], {"vLLM", "SGLang", "LMDeploy"}),
        # LMDeploy's _SUPPORTED_GROUP_SIZES: 128 for awq and gptq, 32 and 128 for compressed-tensors
        ("awq", [G64], {"vLLM", "SGLang"}),
        ("compressed-tensors", [G128], {"vLLM", "SGLang", "LMDeploy"}),
        ("compressed-tensors", [G64], {"vLLM", "SGLang"}),
        ("compressed-tensors", [EIGHT, G128], {"vLLM", "SGLang"}),
    ],
)
def test_servers(format_: str, formats: list[BlockFormat], expected: set[str]) -> None:
    assert servers(format_, *formats) == expected


def test_names_and_a_quantized_head() -> None:
    assert servers("awq", G128, names="transformers") == {"vLLM"}
    assert servers("compressed-tensors", G128, head=G128) == {"vLLM", "SGLang"}
    assert "GPTQModel 7.4.0" in readers_of("gptq", {"layer": G128}, "transformers")["read"]
    told = readers_of("gptq", {"layer": G128}, "hub")["refuse"]["GPTQModel 7.4.0"]
    assert told == {"why": "hub names of tensors", "hint": "export with --names transformers", "server": False}


@pytest.mark.parametrize(
    ("format_", "fmt", "hint"),
    [
        ("gptq", G128, "export --format compressed-tensors or awq, or calibrate with --symmetric"),
        ("gptq", THREE, "calibrate 4 bits in groups of 128 and leave the head out"),
    ],
)
def test_a_refusal_says_what_would_be_read(format_: str, fmt: BlockFormat, hint: str) -> None:
    assert readers_of(format_, {"layer": fmt}, None)["refuse"]["vLLM 0.32.0"]["hint"] == hint


@pytest.mark.parametrize("fmt", [G128, SYMMETRIC, G64, THREE, EIGHT])
def test_the_format_for_servers_is_read_by_as_many_as_any(fmt: BlockFormat) -> None:
    counts = {name: len(servers(name, fmt, names="hub")) for name in ("gptq", "awq", "compressed-tensors")}
    assert counts[server_format({"layer": fmt})] == max(counts.values())
    assert counts["gptq" if fmt == THREE else "compressed-tensors"] == max(counts.values())
