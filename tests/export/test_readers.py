"""Who is said to read a bundle, beside what its readers' own code accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune_export.readers import READERS, Accepts, readers_of, server_format
from edgetune_runtime.quant.blocks import BlockFormat

G128 = BlockFormat(4, 128, symmetric=False)
SYMMETRIC = BlockFormat(4, 128, symmetric=True)
THREE = BlockFormat(3, 128, symmetric=True)
G64 = BlockFormat(4, 64, symmetric=False)
EIGHT = BlockFormat(8, 128, symmetric=True)


def servers(
    format_: str,
    *formats: BlockFormat,
    family: str = "qwen2_5_vl",
    names: str | None = "hub",
    head: BlockFormat | None = None,
) -> set[str]:
    """Titles of the servers that read layers of these formats."""
    layers = {f"layers.{number}": fmt for number, fmt in enumerate(formats)} | ({"lm_head": head} if head else {})
    read = readers_of(format_, layers, family, names)["read"]
    return {reader.title for reader in READERS if reader.server and reader.name in read}


@pytest.mark.parametrize(
    ("format_", "formats", "expected"),
    [
        # vLLM's AutoGPTQConfig.TYPE_MAP has (4, symmetric) and (8, symmetric) alone; LMDeploy's converter wants `sym`
        ("gptq", [G128], {"SGLang"}),
        ("gptq", [SYMMETRIC], {"vLLM", "SGLang", "LMDeploy"}),
        ("gptq", [THREE], {"SGLang"}),
        ("gptq", [EIGHT, SYMMETRIC], {"vLLM", "SGLang"}),
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
    assert servers("compressed-tensors", G128, family="qwen3_vl", names=None) == {"vLLM", "SGLang"}
    assert "GPTQModel 7.4.0" in readers_of("gptq", {"layer": G128}, "qwen2_5_vl", "transformers")["read"]
    told = readers_of("gptq", {"layer": G128}, "qwen2_5_vl", "hub")["refuse"]["GPTQModel 7.4.0"]
    assert told == {"why": "hub names of tensors", "hint": "export with --names transformers", "server": False}


def test_of_families_that_an_engine_was_not_asked_about_nothing_is_promised() -> None:
    told = readers_of("awq", {"layer": G128}, "of_a_package", None)
    assert told["read"] == [] and "vLLM 0.32.0" in told["unknown"]
    told = readers_of("awq", {"layer": G128}, "internvl", None)
    assert "vLLM 0.32.0" in told["read"] and told["unknown"] == ["SGLang 0.5.23", "LMDeploy 0.18.0"]
    assert readers_of("awq", {"layer": G128}, "qwen3_vl", None)["unknown"] == []
    assert readers_of("gptq", {"layer": G128}, "of_a_package", None)["refuse"]["vLLM 0.32.0"]["why"].startswith(
        "zero points"
    )


def test_a_family_that_an_engine_was_asked_about_in_vain() -> None:
    told = readers_of("compressed-tensors", {"layer": SYMMETRIC}, "llava_onevision", "hub")
    assert told["refuse"]["transformers 5.23"] == {
        "why": "model family llava_onevision in format compressed-tensors",
        "hint": "export --format awq or gptq",
        "server": False,
    }
    assert "transformers 5.23" in readers_of("compressed-tensors", {"layer": SYMMETRIC}, "llava", "hub")["read"]
    why = readers_of("gptq", {"layer": G128}, "qwen3_5", None)["refuse"]["GPTQModel 7.4.0"]["why"]
    assert why == "model family qwen3_5 in format gptq"


def test_names_and_a_format_that_one_family_alone_is_not_found_under() -> None:
    refuse = readers_of("awq", {"layer": G128}, "lfm2_vl", "transformers")["refuse"]
    assert refuse["vLLM 0.32.0"] == {
        "why": "transformers names of tensors",
        "hint": "export with --names hub",
        "server": True,
    }
    assert "vLLM 0.32.0" in readers_of("awq", {"layer": G128}, "lfm2_vl", "hub")["read"]
    assert "vLLM 0.32.0" in readers_of("awq", {"layer": G128}, "qwen2_5_vl", "transformers")["read"]
    refuse = readers_of("gptq", {"layer": SYMMETRIC}, "lfm2_vl", "hub")["refuse"]
    assert refuse["vLLM 0.32.0"]["why"] == "model family lfm2_vl in format gptq"
    assert refuse["vLLM 0.32.0"]["hint"] == "export --format compressed-tensors or awq"
    assert "GPTQModel 7.4.0" in readers_of("gptq", {"layer": SYMMETRIC}, "lfm2_vl", "transformers")["read"]


def test_of_formats_for_servers_one_that_was_asked_about_is_chosen() -> None:
    """SGLang takes zero points in gptq too; vLLM, which alone was asked about this family, does not."""
    assert server_format({"layer": G128}, "internvl") in ("awq", "compressed-tensors")


@pytest.mark.parametrize(
    ("format_", "fmt", "hint"),
    [
        ("gptq", G128, "export --format compressed-tensors or awq, or calibrate with --symmetric"),
        ("gptq", THREE, "calibrate 4 bits in groups of 128 and leave the head out"),
    ],
)
def test_a_refusal_says_what_would_be_read(format_: str, fmt: BlockFormat, hint: str) -> None:
    assert readers_of(format_, {"layer": fmt}, "qwen3_vl", None)["refuse"]["vLLM 0.32.0"]["hint"] == hint


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("fmt", [G128, SYMMETRIC, G64, THREE, EIGHT])
def test_the_format_for_servers_is_read_by_as_many_as_any(fmt: BlockFormat, family: str) -> None:
    counts = {name: len(servers(name, fmt, family=family)) for name in ("gptq", "awq", "compressed-tensors")}
    chosen = server_format({"layer": fmt}, family)
    assert counts[chosen] == max(counts.values())
    expected = "gptq" if fmt == THREE else "awq" if fmt.block == 128 and family == "qwen3_vl" else "compressed-tensors"
    assert chosen == ("compressed-tensors" if fmt == EIGHT else expected)


def shown(accepts: Accepts | None) -> str:
    """A cell of the documentation's table."""
    if accepts is None:
        return "no"
    bits = ", ".join(map(str, accepts.bits))
    groups = "any group" if accepts.groups == Accepts().groups else f"g{', g'.join(map(str, accepts.groups))}"
    wants = [] if accepts.zero_points else ["symmetric"]
    wants += [] if accepts.mixed else ["one format"]
    wants += [] if accepts.head else ["head apart"]
    wants += [] if accepts.families is None else [f"{', '.join(accepts.families)} only"]
    wants += [f"not {', '.join(accepts.but)}"] if accepts.but else []
    return "; ".join([f"{bits} bits", groups, *wants])


def test_the_documentation_has_the_same_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "peers.md").read_text(encoding="utf-8")
    for reader in READERS:
        cells = [shown(reader.formats.get(name)) for name in ("gptq", "awq", "compressed-tensors")]
        known = "run" if reader.ran else "code read"
        names = reader.only_names or "either"
        names += f"; {', '.join(reader.hub_only)} hub" if reader.hub_only else ""
        assert f"| {reader.name} | {known} | {' | '.join(cells)} | {names} |" in page
