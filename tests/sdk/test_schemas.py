"""Answers that must fit a schema, in every protocol, by its own client. The grammar sees to it, whatever the model knows."""

import typing

import anthropic
import ollama
import pydantic
import pytest

ASK = "What is the weather in Paris? Answer in JSON."


class Weather(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    city: typing.Literal["Paris", "Rome"]
    sky: typing.Literal["clear", "cloudy", "rain"]
    windy: bool


pytestmark = pytest.mark.demo  # random words would never get to an answer


def test_chat_completions(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": ASK}], response_format=Weather, temperature=0, max_tokens=1000
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_responses(client, model):
    response = client.responses.parse(
        model=model, input=ASK, text_format=Weather, temperature=0, max_output_tokens=1000
    )
    assert isinstance(response.output_parsed, Weather)


@pytest.mark.parametrize("stream", [False, True])
def test_messages(server, stream):
    client = anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=180)
    request = dict(
        model="claude-sonnet",
        max_tokens=1000,
        messages=[{"role": "user", "content": ASK}],
        output_config={"format": {"type": "json_schema", "schema": Weather.model_json_schema()}},
        extra_body={"temperature": 0},
    )
    if stream:
        with client.messages.stream(**request) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**request)
    [block] = message.content
    Weather.model_validate_json(block.text)


def test_strict_tool_of_messages(server):
    client = anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=180)
    tool = {"name": "report", "description": "Reports", "strict": True, "input_schema": Weather.model_json_schema()}
    message = client.messages.create(
        model="claude-sonnet",
        max_tokens=1000,
        messages=[{"role": "user", "content": ASK}],
        tools=[tool],
        tool_choice={"type": "any"},
    )
    [call] = [block for block in message.content if block.type == "tool_use"]
    Weather.model_validate(call.input)


def test_ollama(server):
    client = ollama.Client(host=server.url, timeout=180)
    answer = client.chat(
        model=client.list().models[0].model,
        messages=[{"role": "user", "content": ASK}],
        format=Weather.model_json_schema(),
        options={"temperature": 0, "num_predict": 1000},
    )
    Weather.model_validate_json(answer.message.content)


def test_a_schema_that_cannot_be_followed_is_named(server):
    bad = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    hello = [{"role": "user", "content": "Hello!"}]
    model = "claude-sonnet"
    requests = {
        "/v1/messages": {"model": model, "max_tokens": 9, "messages": hello, "output_config": {"format": {"type": "json_schema", "schema": bad}}},
        "/v1/responses": {"input": "Hello!", "text": {"format": {"type": "json_schema", "name": "x", "schema": bad, "strict": True}}},
        "/api/chat": {"model": "tandem-demo", "messages": hello, "format": bad},
    }
    for path, body in requests.items():
        status, text = server.request("POST", path, body)
        assert status == 400 and "uniqueItems" in text, f"{path}: {status} {text}"
