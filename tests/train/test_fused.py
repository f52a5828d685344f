"""LoRA's update in fewer products: the outputs and gradients of peft's own layers, which stay where they are needed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from edgetune_train.fused import fuse
from edgetune_train.unfreeze import to_float32


class Layers(nn.Module):
    """Two linear layers, whose input needs no gradient, as the embeddings of a frozen model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return result


def adapted(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """The same LoRA model twice, once as peft made it, once fused; both of its matrices are random."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], init_lora_weights=False, **options)
    theirs: Any = get_peft_model(Layers().to(dtype), config)
    to_float32(theirs)
    ours = copy.deepcopy(theirs)
    fuse(ours)
    return theirs, ours


def trained(model: Any, x: torch.Tensor, *, again: bool = False) -> dict[str, torch.Tensor]:
    """The output, and the gradients of all that is trained."""
    output = checkpoint(model, x, use_reentrant=False) if again else model(x)
    output.float().square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"output": output.detach(), **gradients}


@pytest.mark.parametrize("again", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["", "rslora"])
def test_outputs_and_gradients_are_pefts(options: dict[str, Any], again: bool) -> None:
    theirs, ours = adapted(**options)
    x = torch.randn(2, 5, 24)
    expected, found = trained(theirs, x), trained(ours, x, again=again)
    assert expected.keys() == found.keys() and len(found) == 5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_as_close_to_float32_as_peft_and_gradients_stay_float32() -> None:
    theirs, ours = adapted(torch.bfloat16)
    exact = copy.deepcopy(theirs).float()
    x = torch.randn(64, 24)
    expected = trained(exact, x)
    with torch.autocast("cpu", torch.bfloat16):
        apart = [
            {name: float((value.float() - expected[name]).norm() / expected[name].norm()) for name, value in found}
            for found in (trained(model, x.bfloat16()).items() for model in (theirs, ours))
        ]
    for name, distance in apart[1].items():
        assert distance < 1.2 * apart[0][name] + 1e-3, name
    for parameter in ours.parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}], ids=str)
def test_layers_with_more_than_a_product_are_left_to_peft(options: dict[str, Any]) -> None:
    theirs, ours = adapted(**options)
    found = []
    for model in (theirs, ours):
        torch.manual_seed(1)
        found.append(trained(model, torch.ones(3, 24)))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


def test_without_gradients_and_with_the_adapter_off_the_layers_are_pefts() -> None:
    theirs, ours = adapted()
    x = torch.randn(3, 24)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    ours.merge_adapter()
    torch.testing.assert_close(ours.train()(x), theirs(x), rtol=1e-5, atol=1e-5)
