"""What transformers' own processor of each family makes of a picture and a conversation: the reference.

The processors are put together by hand: AutoProcessor would want torchvision for videos. SmolVLM's own wants a package
for video prompts, so Idefics3's, which writes the same text for pictures, stands in for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from PIL import Image

from families.lfm2_processor import image_processor, resize_by_pillow

_transformers: Any = transformers


def load_processor(folder: Path) -> Any:
    """Return the processor of a checkpoint, with PIL's image processor.

    LLaVA's pads to a square, as its authors' code does: `CLIPImageProcessor` would cut the picture.
    """
    tokenizer = _transformers.AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    settings = {"processor_class": settings["processor_class"]}
    if (folder / "processor_config.json").is_file():  # older checkpoints have none
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    kind = settings.pop("processor_class")
    parts = {"tokenizer": tokenizer, "chat_template": tokenizer.chat_template, **settings}
    if kind == "LlavaProcessor":
        fields = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        images = _transformers.LlavaImageProcessorPil(**{**fields, "do_pad": True})
        return _transformers.LlavaProcessor(image_processor=images, **parts)
    if kind == "Lfm2VlProcessor":
        return _lfm2_processor(folder, parts)
    images = _transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    if kind in ("SmolVLMProcessor", "Idefics3Processor"):
        return _transformers.Idefics3Processor(image_processor=images, **parts)
    # Without the check that a video processor is one: only pictures are processed here.
    unchecked = {"check_argument_for_proper_class": lambda self, name, argument: None}
    processor = type(kind, (getattr(_transformers, kind),), unchecked)
    return processor(image_processor=images, video_processor=_Nothing(), **parts)


def _lfm2_processor(folder: Path, parts: dict[str, Any]) -> Any:
    """LFM2-VL's, whose image processor wants torchvision; Pillow resizes here, as in the rule under test."""
    unchecked = {"check_argument_for_proper_class": lambda self, name, argument: None}
    with image_processor(resize_by_pillow) as kind:
        images = _Within(kind.from_pretrained(folder, return_row_col_info=True))
    return type("Lfm2VlProcessor", (_transformers.Lfm2VlProcessor,), unchecked)(image_processor=images, **parts)


class _Within:
    """An image processor of LFM2-VL that finds its stand-in for torchvision at every call."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __call__(self, *args: Any, **options: Any) -> Any:
        with image_processor(resize_by_pillow):
            return self._images(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


class _Nothing:
    """Stands where a video processor would."""

    model_input_names: tuple[str, ...] = ()
    temporal_patch_size = 2


def question(folder: Path, image: Image.Image, text: str) -> dict[str, Any]:
    """Return the model's inputs for one question about one picture, up to where the answer starts."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return tokenized(folder, [{"role": "user", "content": content}], prompt=True)


def tokenized(folder: Path, turns: list[dict[str, Any]], *, prompt: bool) -> dict[str, Any]:
    """Return the model's inputs for turns whose contents are lists of parts."""
    made = load_processor(folder).apply_chat_template(
        turns, add_generation_prompt=prompt, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(made)
