"""OpenAI's responses through OpenAI's own client, and through its agents SDK."""

import asyncio
import json
import time

import agents
import openai
import pytest

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city"}},
        "required": ["city"],
    },
}
ASK = "What is the weather in Paris?"


def test_a_response(client, model):
    response = client.responses.create(model=model, input="Hello!", max_output_tokens=64)
    assert (response.object, response.model) == ("response", model)
    assert response.status in {"completed", "incomplete"}
    assert 0 < response.usage.output_tokens <= 64
    assert all(item.type in {"reasoning", "message"} for item in response.output)


def without_ids(items):
    return [{name: value for name, value in item.model_dump().items() if name != "id"} for item in items]


def test_a_stream_builds_the_same_response(client, model):
    request = dict(model=model, input="Hello!", max_output_tokens=48, temperature=0, instructions="Be brief.")
    whole = client.responses.create(**request)
    events = list(client.responses.create(**request, stream=True))
    streamed = events[-1].response
    assert without_ids(streamed.output) == without_ids(whole.output)
    assert streamed.output_text == whole.output_text
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == f"response.{whole.status}"
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


@pytest.mark.demo
@pytest.mark.parametrize("keeper", ["server", "client"])
def test_a_complete_tool_loop(client, model, keeper):
    request = dict(model=model, tools=[WEATHER], temperature=0)
    if keeper == "client":
        request |= dict(store=False, include=["reasoning.encrypted_content"])
    with client.responses.stream(input=ASK, **request) as stream:
        for _ in stream:
            pass
        first = stream.get_final_response()
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": json.dumps({"temperature": 17, "sky": "cloudy"}),
    }
    if keeper == "server":
        second = client.responses.create(input=[result], previous_response_id=first.id, **request)
    else:
        second = client.responses.create(input=[{"role": "user", "content": ASK}, *first.output, result], **request)
    assert "17" in second.output_text
    assert second.usage.input_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_that_is_demanded_comes(client, model, tool_choice):
    response = client.responses.create(
        model=model, input=ASK, tools=[WEATHER, {"type": "web_search"}], tool_choice=tool_choice, max_output_tokens=32
    )
    assert [item.name for item in response.output if item.type == "function_call"] == ["get_weather"]


def test_responses_are_stored_listed_and_deleted(client, model):
    response = client.responses.create(model=model, input="Hello!", max_output_tokens=8)
    assert client.responses.retrieve(response.id).output_text == response.output_text
    [item] = client.responses.input_items.list(response.id).data
    assert item.content[0].text == "Hello!"
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input="And?", previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_response_in_the_background(client, model):
    response = client.responses.create(model=model, input="Hello!", max_output_tokens=16, background=True)
    deadline = time.monotonic() + 120
    while response.status in {"queued", "in_progress"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    assert response.status in {"completed", "incomplete"}


def test_cancelling_ends_the_computation(client, model, server):
    response = client.responses.create(
        model=model, input="Hello!", max_output_tokens=4000, background=True, temperature=2
    )
    cancelled = client.responses.cancel(response.id)
    # It may have been quick.
    assert cancelled.status in {"cancelled", "completed", "incomplete"}
    deadline = time.monotonic() + 60
    while server.metric("num_requests_running"):
        assert time.monotonic() < deadline, "what was cancelled goes on"
        time.sleep(0.1)
    assert client.responses.retrieve(response.id).status == cancelled.status


def test_errors_are_the_clients_own(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input="x", tools=[{"type": "file_search", "vector_store_ids": ["v"]}])
    assert caught.value.param == "tools[0].type"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input="word " * 9000)
    assert caught.value.code == "context_length_exceeded"


def agent(server, model, api):
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=180)
    kind = agents.OpenAIResponsesModel if api == "responses" else agents.OpenAIChatCompletionsModel

    @agents.function_tool(strict_mode=False)
    def get_weather(city: str) -> str:
        """Get the current weather in a city"""
        called.append(city)
        return json.dumps({"temperature": 17, "sky": "cloudy"})

    called = []
    settings = agents.ModelSettings(temperature=0)
    return called, agents.Agent(
        name="Weather", model=kind(model=model, openai_client=client), tools=[get_weather], model_settings=settings
    )


@pytest.mark.demo
@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_agents_sdk_calls_a_tool(server, model, api, streamed):
    agents.set_tracing_disabled(True)
    called, weather = agent(server, model, api)

    async def run():
        if not streamed:
            return await agents.Runner.run(weather, ASK)
        result = agents.Runner.run_streamed(weather, ASK)
        async for _ in result.stream_events():
            pass
        return result

    assert "17" in asyncio.run(run()).final_output
    assert called == ["Paris"]
