"""transformers on torch, eagerly: what was read of the picture is kept, and phrases are decoded as one batch.

The plain loop stands for `generate`, which has no way to continue one picture with several phrases.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from answering import Peer, Told, serve, since
from PIL import Image
from tokenizers import Tokenizer

_transformers: Any = transformers


def load(settings: dict[str, Any]) -> Peer:
    """The model, and how it answers."""
    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["mode"])
    auto = _transformers.AutoModelForImageTextToText
    model = auto.from_pretrained(settings["model"], dtype=dtype).eval()
    images = _transformers.AutoImageProcessor.from_pretrained(settings["model"], backend="pil")
    tokenizer = Tokenizer.from_file(str(Path(settings["model"]) / "tokenizer.json"))
    chat = settings["chat"]

    def encoded(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    @torch.inference_mode()
    def answer(picture: Path, words: list[str], tokens: int) -> Told:
        began = time.perf_counter()
        with Image.open(picture) as opened:
            pixels = images(images=[opened.convert("RGB")], return_tensors="pt")
        count = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
        before = encoded(chat["prefix"] + chat["before_image"])
        known = torch.tensor([before + [model.config.image_token_id] * count + encoded(chat["after_image"])])
        rests = [encoded(each + chat["suffix"]) for each in words]
        assert len({len(rest) for rest in rests}) == 1, "phrases have to be of one length in tokens, for none is padded"
        read = model(
            input_ids=known,
            mm_token_type_ids=(known == model.config.image_token_id).int(),
            pixel_values=pixels["pixel_values"].to(dtype),
            image_grid_thw=pixels["image_grid_thw"],
            use_cache=True,
            logits_to_keep=1,
        )
        cache = read.past_key_values
        if len(rests) > 1:
            cache.batch_repeat_interleave(len(rests))
        given, place = torch.tensor(rests), known.shape[1]
        behind = int(model.model.rope_deltas.max())
        times, ids = [], []
        for _ in range(tokens):
            rows = torch.arange(place, place + given.shape[1]) + behind
            out = model(
                input_ids=given,
                position_ids=rows.expand(3, len(rests), -1),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            place += given.shape[1]
            given = out.logits[:, -1].argmax(-1, keepdim=True)
            ids.append(int(given[0, 0]))
            times.append(time.perf_counter())
        return Told([known.shape[1] + len(rest) for rest in rests], [len(ids)] * len(rests), *since(times, began), ids)

    return Peer(answer, settings["mode"], ("torch", "transformers"))


if __name__ == "__main__":
    serve(load)
