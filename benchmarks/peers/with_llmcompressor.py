"""llm-compressor on the CPU: GPTQ, and AWQ, which pins memory even where there is no accelerator to pin it for."""

from __future__ import annotations

from typing import Any

from worker import changed, group_size, load_model

PACKAGES = ("llmcompressor", "compressed-tensors")
IGNORED = ["re:.*lm_head", "re:.*visual.*"]
BLOCKS = {"qwen2_5_vl": "Qwen2_5_VLDecoderLayer", "qwen3_vl": "Qwen3VLTextDecoderLayer", "llama": "LlamaDecoderLayer"}


def quantize(job: dict[str, Any], samples: list[dict[str, Any]]) -> Any:
    """Run the modifiers block by block on the real forward with images."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    model = load_model(job["checkpoint"])

    def scheme(size: int, targets: list[str]) -> Any:
        observer = {"observer": "mse"} if job["preset"] == "tuned" else {}
        args = QuantizationArgs(
            num_bits=job["bits"], type="int", strategy="group", group_size=size, symmetric=job["symmetric"], **observer
        )
        return QuantizationScheme(targets=targets, weights=args)

    wide = job.get("wide", {})
    rest = "|".join(wide)
    schemes = {f"g{i}": scheme(size, [f"re:.*{end}$"]) for i, (end, size) in enumerate(wide.items())}
    schemes["rest"] = scheme(job["group_size"], [f"re:.*proj$(?<!{rest})"] if wide else ["Linear"])
    if job["method"] == "gptq":
        recipe: list[Any] = [GPTQModifier(config_groups=schemes, ignore=IGNORED)]
    else:
        setattr(torch.Tensor, "pin_memory", lambda self, *_, **__: self)  # noqa: B010 - it is typed otherwise
        recipe = [AWQModifier(), QuantizationModifier(config_groups=schemes, ignore=IGNORED)]
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(job["checkpoint"]),
        dataset=DataLoader(samples, batch_size=1, collate_fn=lambda batch: batch[0], shuffle=False),  # type: ignore[arg-type]
        recipe=recipe,
        num_calibration_samples=len(samples),
        sequential_targets=[BLOCKS[model.config.model_type]],
    )
    return lambda: dequantize(model, job)


def dequantize(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Round the float weights on the scales that the library found, and return what changed."""
    import torch

    top = 1 << (job["bits"] - 1)
    for name, module in model.named_modules():
        scale = getattr(module, "weight_scale", None)
        if scale is None:
            continue
        assert scale.shape[1] == module.weight.shape[1] // group_size(job, name), name
        groups = module.weight.data.unflatten(1, (scale.shape[1], -1))
        zero = module.weight_zero_point if hasattr(module, "weight_zero_point") else torch.zeros_like(scale)
        zero, scale = zero.to(groups.dtype)[:, :, None], scale.data[:, :, None]
        codes = (groups / scale + zero).round().clamp(-top, top - 1)
        module.weight.data = ((codes - zero) * scale).flatten(1)
    return changed(model, job["checkpoint"])
