"""What the config files of a quantized checkpoint say, so that each reader finds the layers as they were written.

All linear layers of the decoder's blocks are quantized, for readers disagree on how an exception is spelled. Where
formats differ from layer to layer, layers have to be named, and readers name the same one differently: transformers
"model.language_model.layers.0.mlp.up_proj", vLLM "language_model.model.layers.0.mlp.gate_up_proj" with gate and up in
one. So they are named by regular expressions that match either, with "layers.N" outside of the vision tower, and
without an end, for onnxruntime-genai matches them with tensors' names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from edgetune_core.weightset import HEAD
from edgetune_runtime import __version__
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockFormat

Formats = Mapping[str, BlockFormat]
"""Name of each quantized linear layer in transformers, and its format."""

_LAYER = re.compile(r".*\.layers\.(\d+)\.(\w+)\.(\w+)")
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "(q|k|v|qkv)_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "(gate|up|gate_up)_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_(qkv|z|qkvz)"),
    **dict.fromkeys(("in_proj_b", "in_proj_a"), "in_proj_(b|a|ba)"),
}
"""What a linear layer is called where readers put it into one with others, as an expression for all of them."""


def vision_names(modules: Modules) -> list[str]:
    """The vision tower and what projects its output, in modules_to_not_convert.

    transformers matches from the start of a name, others match a part of theirs; with only one of the two, some reader
    would quantize the tower and compute NaN.
    """
    return [name for root in _seeing(modules) for name in (root.removeprefix("model."), root)]


def _seeing(modules: Modules) -> list[str]:
    """What images go through: the tower, and what of the way into the language model lies outside of it."""
    root = modules.vision_root
    return [root, *(name for name in modules.mergers if not name.startswith(f"{root}."))]


def _vision_layers(modules: Modules) -> str:
    """Expression that matches every linear layer that images go through, wherever a reader's module tree has it."""
    names = "|".join(re.escape(root.removeprefix("model.")) for root in _seeing(modules))
    return rf"(.*\.)?{names}\..*" if "|" not in names else rf"(.*\.)?({names})\..*"


def gptq_config(formats: Formats, modules: Modules) -> dict[str, Any]:
    """`quantization_config` of a GPTQ checkpoint; also the content of quantize_config.json.

    The commonest format is the checkpoint's, the others are overrides under `dynamic`, which GPTQModel and vLLM read
    (transformers does not, and refuses such a checkpoint because of the tensors' shapes). There the vision tower is
    left out too, for readers that know no `block_name_to_quantize` would build it of quantized layers.

    Args:
        formats: quantized layers, of 3, 4 or 8 bits.
        modules: names of the family.
    """
    common = _commonest(formats)
    dynamic: dict[str, dict[str, Any]] = {f"-:{_vision_layers(modules)}": {}}
    for fmt in _others(formats, common):
        entry = {"bits": fmt.bits, "group_size": fmt.block, "sym": fmt.symmetric}
        dynamic |= {
            f"+:{pattern}": entry for pattern in _patterns((name for name in formats if formats[name] == fmt), modules)
        }
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": common.bits,
        "group_size": common.block,
        "sym": common.symmetric,
        "desc_act": False,
        "pack_dtype": "int32",
        "lm_head": HEAD in formats,
        # Without it readers guess, and may take the vision tower's blocks for the decoder's.
        "block_name_to_quantize": modules.blocks,
        "dynamic": dynamic,
        # GPTQModel reads zero points of this layout only from itself since 0.9.0, for older writers let them overflow.
        # Ours do not (`edgetune_runtime.quant.gptq`), and the second entry says so in the only way that it knows.
        "meta": {"quantizer": [f"edgetune:{__version__}", "gptqmodel:0.9.0"]},
    }


def awq_config(formats: Formats, modules: Modules) -> dict[str, Any]:
    """`quantization_config` of an AWQ checkpoint (version "gemm").

    Raises:
        InputError: the head is quantized, or layers differ in bits or group size, which this format cannot say.
    """
    if HEAD in formats:
        raise InputError(
            "the weight set quantizes the language model head, which no reader of AWQ checkpoints supports",
            hint="calibrate with --head 16, or export --format gptq",
        )
    shapes = {(fmt.bits, fmt.block) for fmt in formats.values()}
    if any(bits != 4 for bits, _ in shapes):
        found = ", ".join(str(bits) for bits in sorted({bits for bits, _ in shapes}))
        raise InputError(
            f"AWQ checkpoints hold 4 bits only, the weight set has {found}", hint="export --format gptq instead"
        )
    if len(shapes) > 1:
        sizes = ", ".join(str(block) for block in sorted({block for _, block in shapes}))
        raise InputError(
            f"AWQ checkpoints have one group size, the weight set has {sizes}", hint="export --format gptq instead"
        )
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": _commonest(formats).block,
        "zero_point": True,  # written for symmetric layers too, as 8
        "modules_to_not_convert": [*vision_names(modules), HEAD],
    }


def compressed_config(formats: Formats, modules: Modules) -> dict[str, Any]:
    """`quantization_config` of a compressed-tensors checkpoint ("pack-quantized").

    Layers of one format are named by their class, as most published checkpoints do and as some readers require; those
    of several formats by expressions. A quantized head is named in any case, for servers have a class of its own.
    """
    groups = {}
    common = _commonest(formats)
    kinds = (common, *_others(formats, common))
    for number, fmt in enumerate(kinds):
        named = [name for name in formats if formats[name] == fmt and (len(kinds) > 1 or name == HEAD)]
        patterns = _patterns(named, modules)
        groups[f"group_{number}"] = {
            "targets": [*(["Linear"] if len(kinds) == 1 else []), *(f"re:{pattern}" for pattern in patterns)],
            "format": "pack-quantized",
            "weights": {
                "num_bits": fmt.bits,
                "type": "int",
                "symmetric": fmt.symmetric,
                "strategy": "group",
                "group_size": fmt.block,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    ignored = [_vision_layers(modules), *([] if HEAD in formats else _patterns([HEAD], modules))]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        # Expressions, for the names of the module tree that was quantized are not those of every reader.
        "ignore": [f"re:{pattern}" for pattern in ignored],
    }


def _commonest(formats: Formats) -> BlockFormat:
    if not formats:
        raise InputError("the weight set holds no quantized layer", hint="calibrate again")
    return Counter(fmt for name, fmt in formats.items() if name != HEAD or len(formats) == 1).most_common(1)[0][0]


def _others(formats: Formats, common: BlockFormat) -> list[BlockFormat]:
    return [fmt for fmt in dict.fromkeys(formats.values()) if fmt != common]


def _patterns(names: Iterable[str], modules: Modules) -> list[str]:
    """Expressions that match these layers in every reader's naming, one for each kind of layer."""
    layers: dict[str, set[int]] = {}
    patterns = []
    # Some towers have "layers" as well, with the same names in them.
    tower = re.escape(modules.vision_root.rpartition(".")[2])
    apart = rf"(?!.*\b{tower}\.)" if "layers" in modules.vision_blocks.split(".") else ""
    for name in names:
        found = _LAYER.fullmatch(name)
        if found is None:
            patterns.append(rf"(.*\.)?{re.escape(name)}")
            continue
        number, owner, role = found.groups()
        layers.setdefault(rf"{owner}\.{_FUSED.get(role, role)}", set()).add(int(number))
    for kind, numbers in layers.items():
        patterns.append(rf"{apart}.*\.layers\.({'|'.join(map(str, sorted(numbers)))})\.{kind}")
    return patterns
