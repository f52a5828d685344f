"""The same walk on a GPU, where activations may rest in host memory; run where there is one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from calibrate.walks import RTN, load, picture_batches, references, second_moments, walk
from edgetune_calibrate.quantize import DecoderSettings
from edgetune_calibrate.solve import SolveSettings
from edgetune_runtime.families import get_family

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_gpu_sees_what_a_plain_forward_on_it_sees(family: str, offload: bool, request: pytest.FixtureRequest) -> None:
    modules = get_family(family).modules
    assert modules is not None
    folder: Path = request.getfixturevalue(family)
    model = load(folder).cuda()
    batches = picture_batches(model)
    settings = DecoderSettings(
        RTN, head=SolveSettings(method="rtn", bits=8, group_size=32), compensate=True, offload=offload
    )
    blocks, groups = walk(copy.deepcopy(model), modules, batches, settings, device="cuda")
    on_gpu = [{name: tensor.cuda() for name, tensor in batch.items()} for batch in batches]
    for group, inputs in references(model, groups, blocks, on_gpu):
        assert group.hessian.is_cuda
        expected = second_moments(inputs)
        assert (group.hessian - expected).abs().max() <= 1e-5 * expected.abs().max(), group.names
