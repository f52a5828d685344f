"""Passes over several tokens: logits after wanted ones, an answer's own tokens, continuations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgetune_runtime.backends import Backend, Float, Int, load_backend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]


@pytest.fixture(params=FAMILIES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.load(request.getfixturevalue(f"{request.param}_bundle"))


def tokens(engine: Backend, count: int, seed: int = 0) -> tuple[Float, Int]:
    """Embeddings of random tokens, and positions from 0."""
    ids = np.random.default_rng(seed).integers(0, engine.shape.vocabulary, count)
    return engine.embed(ids), np.tile(np.arange(count), (3, 1))


def by_the_graph(bundle: Bundle, embeddings: Float, positions: Int, rows: list[int]) -> tuple[Float, Float]:
    """Both heads after rows of one call, in onnxruntime without the engine."""
    graph = onnxruntime.InferenceSession(bundle.files["decoder"], providers=["CPUExecutionProvider"])
    shapes = {node.name: node.shape for node in graph.get_inputs()}
    given: dict[str, Any] = {
        name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
        for name, shape in shapes.items()
        if name.startswith("past_key_values.")
    }
    given |= {name: np.zeros_like(embeddings[None]) for name in shapes if name.startswith("deepstack_embeds.")}
    given |= {"inputs_embeds": embeddings[None], "position_ids": positions[:, None]}
    given |= {"attention_mask": np.ones((1, len(embeddings)), np.int64)}
    given |= {"logits_at": np.array(rows), "answers_at": np.array(rows)}
    whole, answers = graph.run(["logits", "answer_logits"], given)
    return whole[0], answers[0]


def test_logits_come_after_each_token_that_is_asked_for(bundle: Bundle) -> None:
    engine = load_backend(bundle, threads=1)
    embeddings, positions = tokens(engine, 30)
    whole, answers = by_the_graph(bundle, embeddings, positions, [9, 20, 21, 29])
    assert answers.shape == (4, len(engine.answer_tokens)) and len(engine.answer_tokens) > 20
    np.testing.assert_allclose(answers, whole[:, engine.answer_tokens], atol=1e-5)

    engine.reserve(30)
    assert engine.forward_at(embeddings[:5], positions[:, :5], at=()).shape == (0, engine.shape.vocabulary)
    first = engine.answers_at(embeddings[5:10], positions[:, 5:10], at=[4]).copy()
    rest = engine.forward_at(embeddings[10:], positions[:, 10:], at=[10, 11, 19])
    assert engine.length == 30
    np.testing.assert_allclose(first, answers[:1], atol=1e-4)
    np.testing.assert_allclose(rest, whole[1:], atol=1e-4)


def test_an_engine_that_tells_the_last_logits_alone_is_called_for_each(bundle: Bundle) -> None:
    """What the base class does for engines that override nothing, as that of TensorRT."""
    engine = load_backend(bundle, threads=1)
    embeddings, positions = tokens(engine, 12)
    engine.reserve(12)
    at = (0, 3, 4)
    expected = engine.forward_at(embeddings, positions, at=at).copy()
    engine.reserve(12)
    found = Backend.forward_at_impl(engine, embeddings, positions, (), at)
    assert engine.length == 12
    np.testing.assert_allclose(found, expected, atol=1e-4)
    engine.reserve(12)
    assert Backend.forward_at_impl(engine, embeddings, positions, (), ()).shape == (0, engine.shape.vocabulary)


def test_continuations_side_by_side_are_those_alone(bundle: Bundle) -> None:
    engine = load_backend(bundle, threads=1)
    assert engine.branches and engine.speculates
    embeddings, positions = tokens(engine, 20)
    others, _ = tokens(engine, 10, seed=1)
    engine.reserve(60)

    def alone(behind: Float) -> Float:
        engine.rewind(20)
        start = np.tile(np.arange(20, 20 + len(behind)), (3, 1))
        last: Float = engine.forward_at(behind, start, at=[len(behind) - 1])[0].copy()
        return last

    engine.forward_at(embeddings, positions, at=())
    one, two = others[:4], others[4:]
    expected = alone(one), alone(two), alone(np.concatenate([one[:2], two[:1]]))

    engine.branch(20)
    # The second begins with two tokens that are taken back, and both go on in turns.
    wrong = tokens(engine, 2, seed=2)[0]
    begun = np.concatenate([one[:2], two[:1], wrong])
    places = np.tile([20, 21, 20, 21, 22], (3, 1))
    engine.branches_at(begun, places, np.array([0, 0, 1, 1, 1]), at=(), answers=False)
    engine.drop([-2, -1])
    rest = np.concatenate([two[1:], one[2:]])
    places = np.tile([*range(21, 26), 22, 23], (3, 1))
    logits = engine.branches_at(rest, places, np.array([1] * 5 + [0] * 2), at=[4, 6], answers=False)
    np.testing.assert_allclose(logits, [expected[1], expected[0]], atol=1e-4)
    # Behind the trunk a sequence goes on as ever, and sees nothing of them.
    np.testing.assert_allclose(alone(np.concatenate([one[:2], two[:1]])), expected[2], atol=1e-4)


def test_answers_side_by_side_are_of_the_same_tokens(bundle: Bundle) -> None:
    engine = load_backend(bundle, threads=1)
    embeddings, positions = tokens(engine, 6)
    found = []
    for answers in (False, True):
        engine.reserve(12)
        engine.forward_at(embeddings[:2], positions[:, :2], at=())
        engine.branch(2)
        owners = np.array([0, 0, 1, 1])
        found.append(engine.branches_at(embeddings[2:], positions[:, 2:], owners, at=[1, 3], answers=answers).copy())
    np.testing.assert_allclose(found[1], found[0][:, engine.answer_tokens], atol=1e-5)


@pytest.mark.parametrize("rows", [[-1], [3], [1, 1], [2, 0]])
def test_rows_that_are_none_of_the_tokens_are_refused(qwen3_vl_bundle: Path, rows: list[int]) -> None:
    engine = load_backend(Bundle.load(qwen3_vl_bundle), threads=1)
    embeddings, positions = tokens(engine, 3)
    engine.reserve(3)
    with pytest.raises(InputError, match="rows must be ascending numbers of 3 tokens"):
        engine.forward_at(embeddings, positions, at=rows)
    assert engine.length == 0


def test_owners_must_name_a_continuation_for_each_token(qwen3_vl_bundle: Path) -> None:
    engine = load_backend(Bundle.load(qwen3_vl_bundle), threads=1)
    embeddings, positions = tokens(engine, 3)
    engine.reserve(9)
    engine.forward(embeddings, positions)
    engine.branch(3)
    for owners in (np.array([0, 1]), np.array([0, 1, -1]), np.array([0.0, 1, 2])):
        with pytest.raises(InputError, match=r"owners must be int64 \[3\]"):
            engine.branches_at(embeddings, positions, owners, at=(), answers=False)
