"""Tools: what a request may say of them, and a loop in which one is really called."""

import json

import pytest

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
TRACK = {
    "type": "function",
    "function": {
        "name": "track_order",
        "description": "Track an order",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string", "description": "The id"}},
            "required": ["order_id"],
        },
    },
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


def named(tool):
    return {"type": "function", "function": {"name": tool["function"]["name"]}}


@pytest.mark.parametrize("tool_choice", ["none", "auto"])
def test_tools_may_be_offered(client, model, tool_choice):
    answer = client.chat.completions.create(
        model=model, messages=ASK, tools=[WEATHER, TRACK], tool_choice=tool_choice, max_tokens=16
    )
    assert answer.choices[0].finish_reason in {"stop", "length", "tool_calls"}
    if tool_choice == "none":
        assert not answer.choices[0].message.tool_calls


@pytest.mark.parametrize("tool_choice", [named(WEATHER), "required"])
def test_a_call_that_is_demanded_comes(client, model, tool_choice):
    answer = client.chat.completions.create(
        model=model, messages=ASK, tools=[WEATHER], tool_choice=tool_choice, max_tokens=32
    )
    [call] = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.id and isinstance(call.function.arguments, str)
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason in {"tool_calls", "length"}


def streamed_call(stream):
    """The one call of a stream, put together as clients do it, and why the stream ended."""
    calls, reason = [], None
    for chunk in stream:
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for delta in choice.delta.tool_calls or []:
                assert delta.index in {len(calls) - 1, len(calls)}, "calls come one after the other"
                if delta.index == len(calls):
                    calls.append({"id": delta.id, "name": delta.function.name, "arguments": ""})
                calls[delta.index]["arguments"] += delta.function.arguments or ""
    [call] = calls
    return call, reason


def test_a_call_streams(client, model):
    stream = client.chat.completions.create(
        model=model, messages=ASK, tools=[WEATHER], tool_choice=named(WEATHER), max_tokens=32, stream=True
    )
    call, reason = streamed_call(stream)
    assert call["name"] == "get_weather" and call["id"]
    assert reason in {"tool_calls", "length"}


def test_a_conversation_with_results_is_read(client, model):
    calls = [
        {"id": f"call_{city}", "type": "function", "function": {"name": "get_weather", "arguments": f'{{"city":"{city}"}}'}}
        for city in ["Paris", "Rome"]
    ]
    # Results may come in another order than the calls.
    results = [{"role": "tool", "tool_call_id": call["id"], "content": '{"sky": "clear"}'} for call in reversed(calls)]
    answer = client.chat.completions.create(
        model=model,
        messages=[*ASK, {"role": "assistant", "content": None, "tool_calls": calls}, *results],
        tools=[WEATHER],
        max_tokens=8,
    )
    assert answer.usage.prompt_tokens > 100


def tool_loop(client, model, question, tools, results):
    """Asks, answers every call from `results` (name -> result), and returns the calls made and the last message."""
    messages, made = [{"role": "user", "content": question}], []
    for _ in range(5):
        answer = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0)
        message = answer.choices[0].message
        if not message.tool_calls:
            return made, message.content
        assert answer.choices[0].finish_reason == "tool_calls"
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            made.append((call.function.name, json.loads(call.function.arguments)))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(results[call.function.name])})
    raise AssertionError(f"no answer after {made}")


@pytest.mark.demo
def test_a_complete_loop(client, model):
    made, answer = tool_loop(
        client, model, "What is the weather in Paris?", [WEATHER], {"get_weather": {"temperature": 17, "sky": "cloudy"}}
    )
    assert made == [("get_weather", {"city": "Paris"})]
    assert "17" in answer


@pytest.mark.demo
def test_the_right_one_of_two(client, model):
    made, answer = tool_loop(
        client, model, "Track order A4821.", [WEATHER, TRACK], {"track_order": {"place": "Lisbon"}}
    )
    assert made == [("track_order", {"order_id": "A4821"})]
    assert "Lisbon" in answer


@pytest.mark.demo
def test_a_streamed_call_is_the_whole_call(client, model):
    stream = client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER], temperature=0, stream=True)
    call, reason = streamed_call(stream)
    assert (call["name"], json.loads(call["arguments"]), reason) == ("get_weather", {"city": "Paris"}, "tool_calls")


@pytest.mark.demo
def test_no_call_where_none_fits(client, model):
    made, answer = tool_loop(client, model, "Hello!", [TRACK], {})
    assert made == [] and answer
