"""LiteLLM, which reaches the server by each of its protocols."""

import json
import os

import pytest

# It would fetch a list of prices otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(params=["openai", "anthropic", "ollama_chat"])
def reach(request, server, model):
    """What LiteLLM must be told, by protocol."""
    name = {"openai": model, "anthropic": "claude-sonnet", "ollama_chat": model}[request.param]
    base = server.url + ("/v1" if request.param == "openai" else "")
    return dict(model=f"{request.param}/{name}", api_base=base, api_key="unused", num_retries=0, timeout=180)


def test_a_completion_whole_and_streamed(reach):
    request = dict(messages=[{"role": "user", "content": "Hello!"}], max_tokens=200, temperature=0, **reach)
    whole = litellm.completion(**request).choices[0]
    assert whole.finish_reason in {"stop", "length"}
    chunks = list(litellm.completion(**request, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (whole.message.content or "")


@pytest.mark.demo
def test_a_complete_tool_loop(reach):
    request = dict(tools=[WEATHER], temperature=0, max_tokens=500, **reach)
    first = litellm.completion(messages=ASK, **request).choices[0]
    [call] = first.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {
        "role": "tool",
        "tool_call_id": call.id,
        "name": "get_weather",
        "content": json.dumps({"temperature": 17, "sky": "cloudy"}),
    }
    second = litellm.completion(messages=[*ASK, first.message.model_dump(), result], **request).choices[0]
    assert "17" in second.message.content


def test_errors_keep_their_kind(reach):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=[{"role": "user", "content": "word " * 9000}], **reach)
