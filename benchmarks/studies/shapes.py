"""Checkpoints in the shapes of published models, with random weights: what size costs is measured on them.

Time and memory do not depend on the values of weights, so nothing has to be downloaded but a tokenizer:

    python benchmarks/studies/shapes.py qwen3-vl-8b --tokenizer FOLDER --output FOLDER

The weights are written piece by piece, whatever their size: bfloat16, shards with an index, names of the hub. A
tokenizer of a smaller vocabulary will do, such as that of `examples/tiny/model`: the table of embeddings keeps its
published size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shape import Shape
from tile_shapes import TILE_SHAPES
from tokenizers import Tokenizer

from edgetune_core.conversation import stop_ids, token_id
from edgetune_core.tensor_file import Bytes, TensorLayout, raw, write_sharded
from edgetune_runtime.families import Chat, Family, get_family
from edgetune_runtime.json_file import read_json
from edgetune_runtime.tokens import TextTokenizer

SPREAD = 0.02
"""Standard deviation of weights and biases; what scales after a norm is 1."""
RESIDUAL = ("self_attn.o_proj", "linear_attn.out_proj", "mlp.down_proj")
"""The decoder's layers that write to the residual. Their spread falls with the number of blocks, so that what all of
them write is of the size of a token's embedding. In a deep network that is all random each block would magnify what
rounding changed in those before: 4 bits left half of what a 3B's predictions told."""
SHARD = 4 << 30
"""Bytes of a shard: published ones have about five thousand million."""


_QWEN3_PREPROCESSOR = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
_QWEN2_5_PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "Qwen2_5_VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessor",
}


def _qwen3(text: dict[str, Any], vision: dict[str, Any], *, tied: bool, rotary: tuple[int, ...]) -> Shape:
    common = {
        "vocab_size": 151936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": list(rotary),
            "mrope_interleaved": True,
        },
    }
    vision = {"num_heads": 16, "out_hidden_size": text["hidden_size"]} | vision
    return Shape("qwen3_vl", common | text, vision, tied, _QWEN3_PREPROCESSOR)


def _qwen2_5(text: dict[str, Any], vision: dict[str, Any], *, tied: bool, rotary: tuple[int, ...]) -> Shape:
    common = {
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": list(rotary)},
    }
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": text["hidden_size"]}
    return Shape("qwen2_5_vl", common | text, tower | vision, tied, _QWEN2_5_PREPROCESSOR)


def _qwen3_5(text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> Shape:
    common = {
        "vocab_size": 248320,
        "head_dim": 256,
        "num_key_value_heads": 2,
        "max_position_embeddings": 262144,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000_000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    }
    vision = {"out_hidden_size": text["hidden_size"]} | vision
    return Shape("qwen3_5", common | text, vision, tied, _QWEN3_PREPROCESSOR, marks=("<think>", "</think>"))


def _qwen2(text: dict[str, Any], *, tied: bool) -> Shape:
    common = {
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }
    tower = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    preprocessor = _QWEN2_5_PREPROCESSOR | {"processor_class": "Qwen2VLProcessor"}
    return Shape("qwen2_vl", common | text, tower, tied, preprocessor)


_SMALL = {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
_SMALL_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SMALL_TOWER = {"depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4}
_TOWER_OF_2B = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}

SHAPES: dict[str, Shape] = {
    "qwen3-vl-2b": _qwen3(
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        _TOWER_OF_2B,
        tied=True,
        rotary=(24, 20, 20),
    ),
    "qwen3-vl-4b": _qwen3(
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        _TOWER_OF_2B,
        tied=True,
        rotary=(24, 20, 20),
    ),
    "qwen3-vl-8b": _qwen3(
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
        tied=False,
        rotary=(24, 20, 20),
    ),
    "qwen3.5-0.8b": _qwen3_5(
        {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24, "num_attention_heads": 8},
        {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12},
        tied=True,
    ),
    "qwen2-vl-2b": _qwen2(
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        | {"num_attention_heads": 12, "num_key_value_heads": 2},
        tied=True,
    ),
    "qwen2.5-vl-3b": _qwen2_5(
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936}
        | {"num_attention_heads": 16, "num_key_value_heads": 2},
        {},
        tied=True,
        rotary=(16, 24, 24),
    ),
    "qwen2.5-vl-7b": _qwen2_5(
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
        | {"num_attention_heads": 28, "num_key_value_heads": 4},
        {},
        tied=False,
        rotary=(16, 24, 24),
    ),
    "qwen2.5-vl-0.29b": _qwen2_5(
        {"hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 10, "vocab_size": 151936}
        | {"num_attention_heads": 12, "num_key_value_heads": 2},
        {"depth": 12, "hidden_size": 768, "intermediate_size": 2048, "num_heads": 12}
        | {"fullatt_block_indexes": [2, 5, 8, 11]},
        tied=True,
        rotary=(8, 12, 12),
    ),
    "tiny-qwen3-vl": _qwen3(
        {"vocab_size": 2048, "hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 6}
        | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64},
        {"depth": 8, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 4}
        | {"num_position_embeddings": 256, "deepstack_visual_indexes": [2, 5]},
        tied=True,
        rotary=(12, 10, 10),
    ),
    "small-qwen3-vl": _qwen3(
        _SMALL | _SMALL_HEADS | {"head_dim": 16},
        _SMALL_TOWER | {"deepstack_visual_indexes": [1, 2]},
        tied=True,
        rotary=(4, 2, 2),
    ),
    "small-qwen2.5-vl": _qwen2_5(
        _SMALL | _SMALL_HEADS,
        _SMALL_TOWER | {"fullatt_block_indexes": [1, 3]},
        tied=False,
        rotary=(2, 3, 3),
    ),
    **TILE_SHAPES,
}
"""Published sizes by the model's name on the hub, one for small machines (0.29 B), that of examples/tiny/model, and
two for tests, of no model."""


def config_of(shape: Shape, ids: dict[str, int] | None = None) -> Any:
    """Return transformers' config of a shape.

    Args:
        shape: the sizes.
        ids: tokens by their names in a config, such as `image_token_id`; transformers has Qwen's.
    """
    from transformers import AutoConfig

    tie, ids = {"tie_word_embeddings": shape.tied}, dict(ids or {})
    text = shape.text | tie | {name: ids.pop(name) for name in ("bos_token_id", "eos_token_id") if name in ids}
    return AutoConfig.for_model(
        shape.family, text_config=text, vision_config=dict(shape.vision), dtype="bfloat16", **tie, **ids, **shape.more
    )


def write_checkpoint(
    shape: Shape, tokenizer: Path, folder: Path, *, seed: int = 0, shard: int = SHARD, device: str = "cpu"
) -> None:
    """Write a checkpoint of random bfloat16 weights.

    Args:
        shape: its sizes.
        tokenizer: a folder with the tokenizer.json and tokenizer_config.json of a tokenizer, which gets the control
            tokens that it lacks.
        folder: a new folder.
        seed: of the weights.
        shard: bytes of a shard; at most that much and one piece is in memory.
        device: where they are drawn, each kind of which draws others.

    Raises:
        ValueError: the tokenizer has more tokens than the shape has embeddings.
    """
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    family = get_family(shape.family)
    assert family.modules is not None
    folder.mkdir(parents=True)
    words = _write_tokenizer(tokenizer, folder, family, shape.marks)
    ids = {f"{role}_token_id": token_id(words, text) for role, text in family.special_tokens.items() if role != "pad"}
    stops, pad = stop_ids(words, family), token_id(words, family.special_tokens["pad"])
    if max(*ids.values(), *stops, pad) >= shape.text["vocab_size"]:
        raise ValueError(f"{tokenizer}: has tokens beyond the {shape.text['vocab_size']} embeddings of the shape")
    config = config_of(shape, ids | {"bos_token_id": pad, "eos_token_id": stops[0]})
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=stops, pad_token_id=pad, do_sample=False).save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", shape.preprocessor)
    if shape.processor:
        _write_json(folder / "processor_config.json", shape.processor)

    published = family.modules.hub_name
    layouts = {published(name): TensorLayout.like(tensor) for name, tensor in model.named_parameters()}
    gains = {
        published(f"{name}.weight") for name, module in model.named_modules() if "norm" in type(module).__name__.lower()
    }
    blocks = shape.text["num_hidden_layers"]
    ends = {published(f"{family.modules.blocks}.{n}.{end}.weight") for n in range(blocks) for end in RESIDUAL}
    spreads = {name: SPREAD / (4 * blocks) if name in ends else SPREAD for name in layouts}
    seeds = {name: seed * len(layouts) + number for number, name in enumerate(layouts)}

    def pieces(name: str) -> Iterator[Bytes]:
        generator = torch.Generator(device).manual_seed(seeds[name])
        for first, end in layouts[name].row_slices():
            values = torch.empty(end - first, *layouts[name].shape[1:], dtype=torch.bfloat16, device=device)
            values = values.fill_(1) if name in gains else values.normal_(0, spreads[name], generator=generator)
            yield raw(values.cpu())

    write_sharded(folder, layouts, pieces, shard)


def _write_tokenizer(source: Path, folder: Path, family: Family, marks: tuple[str, ...]) -> TextTokenizer:
    """Copy a tokenizer with the control tokens of a family, and write the family's chat template beside it."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    added = tokenizer.add_special_tokens([*family.special_tokens.values(), *family.stop_tokens, *marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = read_json(source / "tokenizer_config.json")
    settings.pop("chat_template", None)
    if added:  # a class of its own would look for them in lists of its own
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(_template(family.chat), encoding="utf-8")
    return TextTokenizer(folder / "tokenizer.json")


def _template(chat: Chat) -> str:
    """A chat template that renders what a family's pieces say."""

    def said(text: str) -> str:
        return "{{ " + json.dumps(text) + " }}" if text else ""

    system = "".join(said(part) + joint for part, joint in zip(chat.system.split("{text}"), (_WORDS, ""), strict=False))
    image = said(chat.before_image + chat.image_token + chat.after_image)
    content = (
        "{% if message.content is string or message.content[0].type != 'image' %}"
        + said(chat.before_text)
        + "{% endif %}"
        "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    )
    return (
        "{% for message in messages %}{% if message.role == 'system' %}"
        + system
        + "{% elif message.role == 'user' %}{% if loop.first %}"
        + said(chat.prefix)
        + "{% else %}"
        + said(chat.user)
        + "{% endif %}"
        + content
        + "{% if add_generation_prompt or not loop.last %}"
        + said(chat.last_suffix)
        + "{% endif %}{% else %}"
        + said(chat.before_answer)
        + _WORDS
        + said(chat.end + chat.between)
        + "{% endif %}{% endfor %}"
    )


_WORDS = (
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}{{ part.text }}"
    "{% endfor %}{% endif %}"
)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a tokenizer; control tokens that it lacks are added"
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where weights are drawn: cpu or cuda")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    write_checkpoint(shape, options.tokenizer, options.output, seed=options.seed, device=options.device)


if __name__ == "__main__":
    main()
