"""The onnxruntime engine: long prompts are read in chunks, and what was used once is given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgetune_runtime.backends import Device, load_backend
from edgetune_runtime.backends.onnx.engine import PREFILL_CHUNK
from edgetune_runtime.backends.onnx.graphs import open_graph
from edgetune_runtime.backends.onnx.mapped import MappedWeights
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]


def printed(code: str, *arguments: object) -> list[str]:
    """What a process of its own prints, by words."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_chunks_is_the_prompt_at_once(family: str, request: pytest.FixtureRequest) -> None:
    """Against the graph itself in onnxruntime, which reads the whole prompt in one call."""
    bundle = Bundle.load(request.getfixturevalue(f"{family}_bundle"))
    engine, generator = load_backend(bundle, threads=1), np.random.default_rng(0)
    length = 2 * PREFILL_CHUNK + 17
    embeddings = engine.embed(generator.integers(0, engine.shape.vocabulary, length))
    positions = np.tile(np.arange(length), (3, 1))
    features = [generator.standard_normal(embeddings.shape, np.float32) for _ in range(engine.shape.deepstack)]
    engine.reserve(length + 1)
    chunked = engine.forward(embeddings, positions, features).copy()
    following = engine.forward(embeddings[:1], np.full((3, 1), length)).copy()

    graph = onnxruntime.InferenceSession(bundle.files["decoder"], providers=["CPUExecutionProvider"])
    empty = np.zeros((1, engine.shape.kv_heads, 0, engine.shape.head_dim), np.float32)
    given: dict[str, Any] = {
        node.name: empty for node in graph.get_inputs() if node.name.startswith("past_key_values.")
    }
    given |= {f"deepstack_embeds.{number}": array[None] for number, array in enumerate(features)}
    given |= {"inputs_embeds": embeddings[None], "position_ids": positions[:, None]}
    logits, *present = graph.run(None, given | {"attention_mask": np.ones((1, length), np.int64)})
    np.testing.assert_allclose(chunked, logits[0, 0], atol=1e-4)
    names = [node.name for node in graph.get_outputs()[1:]]
    kept = {name: value for name, value in zip(names, present, strict=True) if name.startswith("present.")}
    given = {name.replace("present", "past_key_values"): value for name, value in kept.items()} | {
        f"deepstack_embeds.{number}": np.zeros_like(array[None, :1]) for number, array in enumerate(features)
    }
    given |= {"inputs_embeds": embeddings[None, :1], "position_ids": np.full((3, 1, 1), length)}
    logits = graph.run(["logits"], given | {"attention_mask": np.ones((1, length + 1), np.int64)})[0]
    np.testing.assert_allclose(following, logits[0, 0], atol=1e-4)


def test_a_forgotten_sequence_takes_no_tokens_and_the_next_one_begins_anew(qwen3_vl_bundle: Path) -> None:
    engine = load_backend(Bundle.load(qwen3_vl_bundle), threads=1)
    embeddings, positions = engine.embed(np.arange(40)), np.tile(np.arange(40), (3, 1))
    answers = []
    for _ in range(2):
        engine.reserve(40)
        answers.append(engine.forward(embeddings, positions).copy())
        engine.forget()
        with pytest.raises(InputError, match="40 tokens in a cache of 0"):
            engine.forward(embeddings, positions)
    np.testing.assert_array_equal(answers[0], answers[1])


PICTURES = """
import sys
import numpy as np
from edgetune_runtime import Session

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024

session, generator = Session.load(sys.argv[1], threads=1), np.random.default_rng(0)
for number in range(80):
    width, height = (int(side) for side in generator.integers(32, 400, 2))
    picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    session.ask(picture, "Where? " * int(generator.integers(1, 40)), max_new_tokens=3)
    if number >= 19:
        print(resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_stays_flat_over_pictures_of_many_sizes(int4_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PICTURES, str(int4_bundle)], capture_output=True, text=True, check=True
    )
    resident = [float(line) for line in done.stdout.split()]
    assert len(resident) == 61
    assert max(resident) - resident[0] < 8, resident


MAPPED = """
import sys
from edgetune_runtime import Session

session = Session.load(sys.argv[1], threads=1)
print(*{line.split()[-1] for line in open("/proc/self/maps") if ".onnx.data" in line}, sep="\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are read from /proc")
def test_weights_are_mapped_where_they_lie(qwen3_vl_bundle: Path) -> None:
    # Mapped weights that were arranged anew for products are let go, so not every file is still there.
    assert str(qwen3_vl_bundle / "onnx/vision_encoder.onnx.data") in printed(MAPPED, qwen3_vl_bundle)


UNTOUCHED = """
import sys
from edgetune_runtime import Session

session, path, resident = Session.load(sys.argv[1], threads=1), "", 0
for line in open("/proc/self/smaps"):
    name, *words = line.split()
    if "-" in name:
        path = words[-1] if len(words) == 5 else ""
    elif name == "Rss:" and path.endswith(("vision_encoder.onnx.data", "decoder_model_merged.onnx.data")):
        resident += int(words[0])
print(resident)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are read from /proc")
@pytest.mark.parametrize("fixture", ["qwen3_vl_bundle", "int4_bundle"])
def test_nothing_of_the_files_is_in_memory_after_loading(fixture: str, request: pytest.FixtureRequest) -> None:
    assert printed(UNTOUCHED, request.getfixturevalue(fixture)) == ["0"]


def test_a_session_reads_its_weights_where_they_are_mapped(qwen3_vl_bundle: Path, tmp_path: Path) -> None:
    """Against the graph in onnxruntime alone; pages that were let go of come back as they were."""
    graph = tmp_path / "vision_encoder.onnx"
    for name in (graph.name, f"{graph.name}.data"):
        (tmp_path / name).write_bytes((qwen3_vl_bundle / "onnx" / name).read_bytes())
    mapped = MappedWeights(graph)
    session = open_graph(graph, Device("cpu"), 1, mapped=mapped)
    reference = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((16, session.get_inputs()[0].shape[1]), np.float32)
    given = {"pixel_values": pixels, "image_grid_thw": np.array([[1, 4, 4]])}
    expected = reference.run(None, given)
    for _ in range(2):
        for ours, theirs in zip(session.run(None, given), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        mapped.let_go()


def test_a_graph_without_a_file_of_weights_and_an_older_onnxruntime_are_left_alone(tmp_path: Path) -> None:
    """There are no options here: to change any would raise."""
    for version, content in ((onnxruntime.__version__, b""), ("1.22.0", b"weights")):
        (tmp_path / "graph.onnx.data").write_bytes(content)
        MappedWeights(tmp_path / "graph.onnx").give(None, version)
    MappedWeights(tmp_path / "other.onnx").let_go()


FREED = """
import numpy as np
from edgetune_runtime.memory import return_freed_memory

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024

return_freed_memory()
np.ones(30 << 20, np.uint8)  # freed at once; glibc would now keep blocks up to this size in its heap
blocks = [np.ones(1 << 20, np.uint8) for _ in range(64)]
full = resident()
del blocks[::2]
print(full - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_freed_between_blocks_that_stay_is_given_back() -> None:
    freed = {}
    for kept in (False, True):
        code = FREED.replace("\nreturn_freed_memory()", "" if kept else "\nreturn_freed_memory()")
        freed[kept] = float(printed(code)[0])
    assert freed[False] > 24
    assert freed[True] < 8  # what the C library does by itself, or the call would be idle
