"""Anthropic's protocol through Anthropic's own client."""

import json
import threading
import time

import anthropic
import pytest

WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city"}},
        "required": ["city"],
    },
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
MODEL = "claude-sonnet"
# The client no longer has a name for this field of its protocol.
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module", params=["", "/anthropic"])
def client(server, request):
    return anthropic.Anthropic(base_url=server.url + request.param, api_key="unused", max_retries=0, timeout=180)


def test_a_message(client):
    message = client.messages.create(model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "Hello!"}])
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.stop_reason in {"end_turn", "max_tokens"}
    assert 0 < message.usage.output_tokens <= 64
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hello!"}])
    assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens


@pytest.mark.demo
def test_a_message_without_thinking_is_text_alone(client):
    message = client.messages.create(model=MODEL, max_tokens=256, messages=[{"role": "user", "content": "Hello!"}])
    assert message.stop_reason == "end_turn"
    [block] = message.content
    assert block.type == "text" and block.text


def test_a_stream_builds_the_same_message(client):
    request = dict(
        model=MODEL,
        max_tokens=48,
        extra_body=GREEDY,
        thinking={"type": "adaptive"},
        system=[{"type": "text", "text": "Be brief."}],
        messages=[{"role": "user", "content": "Hello!"}],
    )
    whole = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    strip = lambda message: [{**block.model_dump(), "signature": None} for block in message.content]
    assert strip(streamed) == strip(whole)
    assert streamed.stop_reason == whole.stop_reason
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert streamed.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.demo
@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "adaptive"}, {"type": "adaptive", "display": "omitted"}])
def test_a_complete_tool_loop(client, thinking):
    messages = list(ASK)
    request = dict(model=MODEL, max_tokens=512, extra_body=GREEDY, tools=[WEATHER], thinking=thinking)
    with client.messages.stream(messages=messages, **request) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    [call] = [block for block in first.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = json.dumps({"temperature": 17, "sky": "cloudy"})
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": result}]},
    ]
    second = client.messages.create(messages=messages, **request)
    assert second.stop_reason == "end_turn"
    assert "17" in second.content[-1].text
    assert second.usage.cache_read_input_tokens > 0


@pytest.mark.parametrize("tool_choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_that_is_demanded_comes(client, tool_choice):
    message = client.messages.create(
        model=MODEL, max_tokens=32, messages=ASK, tools=[WEATHER], tool_choice=tool_choice
    )
    assert [block.name for block in message.content if block.type == "tool_use"] == ["get_weather"]
    assert message.stop_reason in {"tool_use", "max_tokens"}


def test_errors_are_the_clients_own(client):
    hello = [{"role": "user", "content": "Hello!"}]
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="gpt-9", max_tokens=8, messages=hello)
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert caught.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model=MODEL, max_tokens=8, messages=hello, extra_body={"temperature": 7})
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 8192 maximum"):
        client.messages.create(model=MODEL, max_tokens=8, messages=[{"role": "user", "content": "word " * 9000}])
    with pytest.raises(anthropic.BadRequestError, match=r"exceed context limit: \d+ \+ 32000 > 8192"):
        client.messages.create(model=MODEL, max_tokens=32000, messages=hello, stream=True)
    with pytest.raises(anthropic.RequestTooLargeError):
        client.messages.create(model=MODEL, max_tokens=8, messages=[{"role": "user", "content": "x" * (2 << 20)}])


def test_leaving_a_stream_ends_the_request(client, server):
    request = dict(model=MODEL, max_tokens=4000, messages=[{"role": "user", "content": "Hello!"}], stream=True)
    streams = [client.messages.create(**request) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 60
    while server.metric("num_requests_running") or server.metric("num_requests_waiting"):
        assert time.monotonic() < deadline, "requests go on without their clients"
        time.sleep(0.1)


def test_models_are_listed(client):
    models = client.models.list().data
    assert all(model.id.startswith(("claude", "anthropic")) for model in models)
    assert client.models.retrieve(models[0].id).id == models[0].id


def test_several_at_once(client):
    def ask(at, said={}):
        message = client.messages.create(
            model=MODEL, max_tokens=16, messages=[{"role": "user", "content": f"Hello number {at}!"}]
        )
        said[at] = message.stop_reason

    said = {}
    threads = [threading.Thread(target=ask, args=(at, said)) for at in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert len(said) == 12
