"""Answer the records of an evaluation set with a Hugging Face checkpoint under torch: the row to compare bundles with.

Writes the same JSON as `edgetune_runtime.worker`. Image processor, chat template and greedy `generate` are
transformers' own, so that a mistake in our preprocessing, prompt or decode loop shows as a difference and does not
cancel out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.families import get_family
from edgetune_runtime.geometry import Geometry
from edgetune_runtime.grounding import parse
from edgetune_runtime.image import load_image
from edgetune_runtime.records import Record
from edgetune_runtime.timing import Timings
from edgetune_runtime.worker import Ask, Reply, add_arguments, run


class TorchModel:
    """A vision-language checkpoint that answers records greedily through `generate`.

    Raises InputError when the checkpoint lacks its image processor's settings or cannot be read, MissingDependency
    for an adapter without peft.
    """

    def __init__(self, checkpoint: Path, *, adapter: Path | None, device: str, max_new_tokens: int) -> None:
        config = checkpoint / "config.json"
        self._family = get_family(json.loads(config.read_text())["model_type"])
        if self._family.modules is None:
            raise InputError(f"{checkpoint}: {self._family.title} is supported for its boxes only, not for running")
        if not (checkpoint / "preprocessor_config.json").is_file():
            raise InputError(f"{checkpoint}: no preprocessor_config.json", hint="copy it from the base model")
        self._device = torch.device(device)
        # Parts of transformers are not typed.
        self._processor: Any = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto")
        if adapter is not None:
            model = _with_adapter(model, adapter)
        self._model = model.to(self._device).eval()
        self._clock = _Clock(self._model.get_submodule(self._family.modules.vision_root), self._model, self._device)
        stop = [self._tokenizer.convert_tokens_to_ids(token) for token in self._family.stop_tokens]
        self._generation = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=stop[-1], use_cache=True
        )

    @property
    def dtype(self) -> str:
        """Precision of the weights as torch names it, e.g. `bfloat16`."""
        return str(self._model.dtype).removeprefix("torch.")

    def answer(self, record: Record) -> Reply:
        """Answer one record; boxes come back in pixels of the original image."""
        started = time.perf_counter()
        image = load_image(record.image)
        pixels = self._processor(images=image, return_tensors="pt")
        grid = pixels["image_grid_thw"]  # [1, 3]: frames, patch rows, patch columns
        ground = record.kind == "ground"
        prompt = self._prompt(record.prompt(self._family), int(grid.prod()) // self._processor.merge_size**2)
        ids = self._tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]  # [1, S]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).long(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": grid,
        }
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        preprocess = time.perf_counter() - started
        with torch.inference_mode(), self._clock.running():
            output = self._model.generate(**inputs, generation_config=self._generation)
        new = output[0, ids.shape[1] :].tolist()
        raw: str = self._tokenizer.decode(new, skip_special_tokens=False)
        for token in self._family.stop_tokens:
            raw = raw.removesuffix(token)
        timings = self._clock.timings(preprocess, time.perf_counter() - started, len(new))
        rows, columns = (int(side) * self._processor.patch_size for side in grid[0, 1:])
        geometry = Geometry(image.width, image.height, columns, rows)
        return Reply(raw, parse(raw, geometry, self._family) if ground else None, timings)

    def _prompt(self, text: str, image_tokens: int) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        if not self._tokenizer.chat_template:
            raise InputError("the checkpoint has no chat template", hint="copy chat_template.jinja from its base model")
        prompt: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        token = self._family.chat.image_token
        return prompt.replace(token, token * image_tokens)


class _Clock:
    """Splits one `generate` into vision, prefill and decode by watching two modules' forward calls."""

    def __init__(self, vision: torch.nn.Module, model: torch.nn.Module, device: torch.device) -> None:
        self._device = device
        self._vision: list[float] = []
        self._steps: list[float] = []
        self._start = self._end = 0.0
        self._watch(vision, self._vision)
        self._watch(model, self._steps)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time one `generate` call; earlier readings are dropped."""
        self._vision.clear()
        self._steps.clear()
        self._start = self._now()
        yield
        self._end = self._now()

    def timings(self, preprocess: float, total: float, tokens: int) -> Timings:
        """The stages of the last call; prefill ends with the first token, all after it is decode."""
        vision = self._vision[1] - self._vision[0]
        first_end = self._steps[1]
        # Versions of transformers run the vision tower inside the first step or before it; either way this is the rest.
        prefill = first_end - self._start - vision
        return Timings(preprocess, vision, prefill, self._end - first_end, total, tokens)

    def _watch(self, module: torch.nn.Module, marks: list[float]) -> None:
        def mark(*_: Any) -> None:
            marks.append(self._now())

        module.register_forward_pre_hook(mark)
        module.register_forward_hook(mark)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _with_adapter(model: Any, adapter: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependency("an adapter needs peft", hint="pip install 'edgetune[train]'") from error
    # Layers are adapted in place, so the model inside does all the work, and forward hooks on it see generate's steps.
    return PeftModel.from_pretrained(model, adapter).get_base_model()


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="edgetune_bench.torch_worker", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="Hugging Face checkpoint folder")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter to apply, unmerged")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    header: dict[str, Any] = {"engine": "torch", "device": options.device, "threads": torch.get_num_threads()}

    def load() -> Ask:
        model = TorchModel(
            options.checkpoint, adapter=options.adapter, device=options.device, max_new_tokens=options.max_new_tokens
        )
        header["precision"] = model.dtype
        answer: Callable[[Record], Reply] = model.answer
        return answer

    folders = [options.checkpoint, *([options.adapter] if options.adapter else [])]
    return run(load, options, folders=folders, header=header)


if __name__ == "__main__":
    sys.exit(main())
