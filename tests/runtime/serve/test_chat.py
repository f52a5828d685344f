"""OpenAI's API, asked with OpenAI's own client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from edgetune_runtime.session import Session
from served import Asked, Server, encoded

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

BOXES = {
    "type": "json_schema",
    "json_schema": {
        "name": "boxes",
        "schema": {
            "type": "object",
            "properties": {
                "detections": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"box": {"type": "array"}, "label": {"type": "string"}}},
                }
            },
        },
    },
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def messages(asked: Asked, words: str) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(asked.picture)}"}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": words}]}]


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_answers_are_those_of_the_session(client: Any, session: Session, asked: list[Asked]) -> None:
    for each in asked[:4]:
        words = session.request(each.phrase)
        stream = session.stream(each.picture, words)
        text = "".join(stream)
        told = client.chat.completions.create(model="tiny", messages=messages(each, words), temperature=0)
        assert told.choices[0].message.content == text
        assert told.choices[0].finish_reason == "stop"
        assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (stream.prompt_tokens, len(stream.tokens))


def test_pieces_arrive_one_by_one_and_add_up(client: Any, session: Session, asked: list[Asked]) -> None:
    words = session.request(asked[0].phrase)
    options = {"model": "tiny", "messages": messages(asked[0], words)}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 5
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    # The second answer is about the same picture, which had been read up to its end.
    assert 0 < chunks[-1].usage.prompt_tokens_details.cached_tokens < whole.usage.prompt_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_an_answer_that_is_too_long_says_so(client: Any, session: Session, asked: list[Asked]) -> None:
    words = session.request(asked[0].phrase)
    told = client.chat.completions.create(model="tiny", messages=messages(asked[0], words), max_tokens=3)
    assert told.choices[0].finish_reason == "length" and told.usage.completion_tokens == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_texts_end_an_answer_and_are_left_out(
    streamed: bool, client: Any, session: Session, asked: list[Asked]
) -> None:
    words = session.request(asked[0].phrase)
    whole = session.ask(asked[0].picture, words)
    stop = whole[6:9]
    options = {"model": "tiny", "messages": messages(asked[0], words), "stop": [stop, "never"]}
    if streamed:
        chunks = list(client.chat.completions.create(**options, stream=True))
        text, finish = "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0]
    else:
        finish = client.chat.completions.create(**options).choices[0]
        text = finish.message.content
    assert text == whole[: whole.index(stop)]
    assert finish.finish_reason == "stop"


def test_probabilities_are_those_of_the_tokens(client: Any, session: Session, asked: list[Asked]) -> None:
    words = session.request(asked[0].phrase)
    stream = session.stream(asked[0].picture, words, probabilities=True)
    text = "".join(stream)
    told = client.chat.completions.create(model="tiny", messages=messages(asked[0], words), logprobs=True)
    found = told.choices[0].logprobs.content
    assert "".join(token.token for token in found) == text
    assert [math.exp(token.logprob) for token in found] == pytest.approx([token.probability for token in stream.tokens])


def test_boxes_as_json(client: Any, session: Session, asked: list[Asked]) -> None:
    for each in asked[:6]:
        words = session.request(each.phrase)
        options = {"model": "tiny", "messages": messages(each, words), "response_format": BOXES}
        told = client.chat.completions.create(**options)
        expected = [
            {"box": list(found.box), "label": found.label} for found in session.ground(each.picture, each.phrase)
        ]
        assert json.loads(told.choices[0].message.content) == {"detections": expected}
        assert told.usage.prompt_tokens > 0


def test_tokens_are_those_of_the_text_before_a_stop(client: Any, session: Session, asked: list[Asked]) -> None:
    words = session.request(asked[0].phrase)
    stop = session.ask(asked[0].picture, words)[8:12]
    options = {"model": "tiny", "messages": messages(asked[0], words), "logprobs": True, "stop": stop}
    told = client.chat.completions.create(**options).choices[0]
    spelled = "".join(token.token for token in told.logprobs.content)
    assert told.message.content.startswith(spelled) and spelled
    text = spelled = ""
    for chunk in client.chat.completions.create(**options, stream=True):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs:
            spelled += "".join(token.token for token in chunk.choices[0].logprobs.content)
        assert text.startswith(spelled)
    assert text == told.message.content


def test_boxes_by_a_schema_with_definitions_as_pydantic_writes_them(client: Any, asked: list[Asked]) -> None:
    pydantic = pytest.importorskip("pydantic")
    box = pydantic.create_model("Box", box=(list[float], ...), label=(str, ...))
    boxes = pydantic.create_model("Boxes", detections=(list[box], ...))  # type: ignore[valid-type]
    told = client.chat.completions.parse(model="tiny", messages=messages(asked[0], "x"), response_format=boxes)
    message = told.choices[0].message
    assert message.parsed is not None or message.refusal  # what the model says of "x" may be no boxes


def test_boxes_that_are_cut_off_say_so(client: Any, session: Session, asked: list[Asked]) -> None:
    words = session.request(asked[0].phrase)
    options = {"model": "tiny", "messages": messages(asked[0], words), "response_format": BOXES}
    whole = client.chat.completions.create(**options)
    cut = client.chat.completions.create(**options, max_tokens=5)
    assert (whole.choices[0].finish_reason, cut.choices[0].finish_reason) == ("stop", "length")
    assert cut.usage.completion_tokens == 5
    assert whole.usage.completion_tokens == session.answer(asked[0].picture, words).timings.tokens - 1
    assert whole.choices[0].message.refusal is None


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
            "response_format",
        ),
        ({"response_format": BOXES, "logprobs": True}, "logprobs"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    more: dict[str, Any], param: str, client: Any, asked: list[Asked]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages(asked[0], "the cup"), **more)
    assert str(caught.value.body["param"]).startswith(param), caught.value.body


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}] * 2}],
    ],
)
def test_conversations_that_are_not_answered_are_refused(turns: list[Any], client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=turns)
    assert caught.value.body["param"].startswith("messages")


def test_a_question_without_a_picture(client: Any, session: Session) -> None:
    told = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "What colour is a cup?"}], max_completion_tokens=8
    )
    assert told.choices[0].message.content.strip() == session.ask(None, "What colour is a cup?", max_new_tokens=8)


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hi"}])
