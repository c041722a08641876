"""Ollama's own client, and what Open WebUI and Zed ask before they talk."""

import json

import ollama
import pytest

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url, timeout=180)


@pytest.fixture(scope="module")
def name(client):
    return client.list().models[0].model


def get_weather(city: str) -> str:
    """Get the current weather in a city

    Args:
        city: Name of the city
    """
    return json.dumps({"temperature": 17, "sky": "cloudy"})


def test_a_chat_whole_and_streamed(client, name):
    request = dict(model=name, messages=[{"role": "user", "content": "Hello!"}], options={"temperature": 0, "num_predict": 64})
    whole = client.chat(**request)
    parts = list(client.chat(**request, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert "".join(part.message.thinking or "" for part in parts) == (whole.message.thinking or "")
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count > 0
    assert whole.done_reason in {"stop", "length"}


def test_generate(client, name):
    whole = client.generate(model=name, prompt="Hello!", options={"num_predict": 16})
    assert whole.done and isinstance(whole.response, str)


@pytest.mark.demo
@pytest.mark.parametrize("stream", [False, True])
def test_a_complete_tool_loop(client, name, stream):
    request = dict(model=name, tools=[get_weather], options={"temperature": 0})
    if stream:
        parts = list(client.chat(messages=ASK, stream=True, **request))
        message = next(part.message for part in parts if part.message.tool_calls)
    else:
        message = client.chat(messages=ASK, **request).message
    [call] = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather("Paris")}
    answer = client.chat(messages=[*ASK, message, result], **request)
    assert "17" in answer.message.content


def test_errors_are_the_clients_own(client, name):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(model="llama3", messages=ASK)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="embedding"):
        client.embed(model=name, input="x")
    with pytest.raises(ollama.ResponseError):
        client.pull("llama3")
    assert client.pull(name).status == "success"


def test_what_open_webui_asks(server):
    """GET /api/version, /api/tags and /api/ps of an Ollama connection, /models of an OpenAI one, in its order."""
    assert all(part.isdigit() for part in json.loads(server.get("/api/version")[1])["version"].split("."))
    [tag] = json.loads(server.get("/api/tags")[1])["models"]
    assert tag["model"] == tag["name"]
    [running] = json.loads(server.get("/api/ps")[1])["models"]
    assert running["model"] == tag["model"] and running["expires_at"]
    assert json.loads(server.get("/v1/models")[1])["data"]
    # It sends options of its own with every chat, and reads one JSON object a line.
    body = {
        "model": tag["model"],
        "messages": [{"role": "user", "content": "Hello!"}],
        "options": {"num_predict": 8},
        "keep_alive": "5m",
        "stream": True,
    }
    status, text = server.request("POST", "/api/chat", body)
    assert status == 200 and json.loads(text.splitlines()[-1])["done"]


def test_what_zed_asks(server):
    """GET /api/tags, POST /api/show of each model, then /api/chat with a tool."""
    [tag] = json.loads(server.get("/api/tags")[1])["models"]
    for field in ["name", "modified_at", "size", "digest"]:
        assert field in tag
    for field in ["format", "family", "parameter_size", "quantization_level"]:
        assert isinstance(tag["details"][field], str)
    shown = server.post("/api/show", {"model": tag["name"]})
    assert {"tools", "thinking"} <= set(shown["capabilities"])
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == 8192
    body = {
        "model": tag["name"],
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
        "stream": True,
        "keep_alive": -1,
        "options": {"num_ctx": 8192, "stop": [], "temperature": 1.0, "num_predict": 16},
        "think": True,
        "tools": [{"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}],
    }
    status, text = server.request("POST", "/api/chat", body)
    assert status == 200
    for line in text.splitlines():
        message = json.loads(line)["message"]
        assert isinstance(message["content"], str)
