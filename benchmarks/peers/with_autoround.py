"""AutoRound on the CPU: 200 steps of signed gradient descent a block, its default, or 50, its light recipe."""

from __future__ import annotations

from typing import Any

from worker import changed, group_size, load_model

PACKAGES = ("auto-round",)


def quantize(job: dict[str, Any], samples: list[dict[str, Any]]) -> Any:
    """Tune the text decoder on the real forward with images.

    Samples differ in length, so they go one by one, eight to a step (the default batch). Without torch.compile, which
    takes minutes to compile a block of a small model.
    """
    from auto_round import AutoRound
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    model = load_model(job["checkpoint"])
    tokenizer = AutoTokenizer.from_pretrained(job["checkpoint"])
    layers = {
        name: {"group_size": group_size(job, name)}
        for name, _ in model.named_modules()
        if group_size(job, name) != job["group_size"]
    }
    visual = {"processor": tokenizer, "quant_nontext_module": False} if "pixel_values" in samples[0] else {}
    method = {"algorithm": "awq"} if job["method"] == "awq" else {"iters": 50 if job["preset"] == "light" else 200}
    rounding = AutoRound(
        model=model,
        tokenizer=tokenizer,
        bits=job["bits"],
        group_size=job["group_size"],
        sym=job["symmetric"],
        layer_config=layers or None,
        dataset=DataLoader(samples, batch_size=1, collate_fn=lambda batch: batch[0], shuffle=False),  # type: ignore[arg-type]
        nsamples=len(samples),
        seqlen=8192 if visual else samples[0]["input_ids"].shape[1],  # shorter text is left out without a word
        batch_size=1,
        gradient_accumulate_steps=8,
        device_map="cpu",
        enable_torch_compile=False,
        amp=False,
        **method,
        **visual,
    )
    model, _ = rounding.quantize()
    return lambda: changed(model, job["checkpoint"])
