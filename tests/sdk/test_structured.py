"""Structured output as OpenAI's client asks for it, and as vLLM's clients do."""

import json
import re
from enum import Enum
from typing import Literal, Optional, Union

import openai
import pytest
from pydantic import BaseModel, Field

# Ends thoughts and strings soon, also those of a model that has nothing to say: <|end|>, and `"` alone or closing.
HURRY = {"200007": 60, "1": 9, "92": 9, "60": 9}
ASK = [{"role": "user", "content": "Anna Berg is 34 and lives in Oslo."}]
COMMON = {"messages": ASK, "max_tokens": 900, "logit_bias": HURRY, "seed": 7}


class Colour(str, Enum):
    RED = "red"
    GREEN = "green"


class Address(BaseModel):
    street: str
    number: Optional[int]


class Person(BaseModel):
    name: str
    age: int
    colour: Colour
    homes: list[Address] = Field(max_length=2)
    likes: Union[bool, Literal["some", "all"]]


class Node(BaseModel):
    value: Literal[1, 2]
    next: Optional["Node"]


@pytest.mark.parametrize("form", [Person, Node])
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_is_parsed(client, model, form, temperature):
    for seed in range(3):
        asked = {**COMMON, "seed": seed, "temperature": temperature}
        answer = client.chat.completions.parse(model=model, response_format=form, **asked)
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, form)


def test_a_streamed_answer_is_parsed(client, model):
    with client.chat.completions.stream(model=model, response_format=Person, **COMMON) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert isinstance(final.choices[0].message.parsed, Person)


def test_the_arguments_of_a_strict_tool_are_parsed(client, model):
    tool = openai.pydantic_function_tool(Person, name="remember")
    for choice in ["required", {"type": "function", "function": {"name": "remember"}}]:
        answer = client.chat.completions.parse(model=model, tools=[tool], tool_choice=choice, **COMMON)
        [call] = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "remember" and isinstance(call.function.parsed_arguments, Person)


def test_tools_and_a_format_together(client, model):
    """Either a strict call or an answer in form: nothing else can come."""
    tool = openai.pydantic_function_tool(Node, name="keep")
    for seed in range(6):
        asked = {**COMMON, "seed": seed}
        answer = client.chat.completions.parse(model=model, tools=[tool], response_format=Person, **asked)
        message = answer.choices[0].message
        if message.tool_calls:
            assert isinstance(message.tool_calls[0].function.parsed_arguments, Node)
        else:
            assert isinstance(message.parsed, Person)


def test_some_of_the_tools_are_allowed(client, model):
    tools = [openai.pydantic_function_tool(Node, name=name) for name in ["one", "two", "three"]]
    named = [{"type": "function", "function": {"name": name}} for name in ["two", "three"]]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    answer = client.chat.completions.parse(model=model, tools=tools, tool_choice=choice, n=4, **COMMON)
    assert {call.message.tool_calls[0].function.name for call in answer.choices} <= {"two", "three"}


def test_responses_are_parsed_too(client, model):
    """A model with nothing to say may think until its budget ends: what it did say is in form."""
    answer = client.responses.parse(model=model, input=ASK, text_format=Node, max_output_tokens=900, temperature=0)
    if answer.status == "completed":
        assert isinstance(answer.output_parsed, Node)


@pytest.mark.parametrize(
    "asked, fits",
    [
        ({"guided_choice": ["yes", "no"]}, lambda text: text in {"yes", "no"}),
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, lambda text: re.fullmatch("[0-9]{3}-[a-f]{2}", text)),
        ({"guided_json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}, lambda text: len(json.loads(text)) <= 3),
        ({"structured_outputs": {"choice": ["left", "right"]}}, lambda text: text in {"left", "right"}),
        ({"structured_outputs": {"grammar": 'start: "a" ("," "a")~1..3'}}, lambda text: re.fullmatch("a(,a){1,3}", text)),
        ({"structured_outputs": {"json": {"const": {"a": [1]}}}}, lambda text: json.loads(text) == {"a": [1]}),
    ],
)
def test_vllms_fields(client, model, asked, fits):
    chat = client.chat.completions.create(model=model, extra_body=asked, **COMMON)
    assert chat.choices[0].finish_reason == "stop"
    assert fits(chat.choices[0].message.content)
    raw = client.completions.create(model=model, prompt="So:", max_tokens=80, logit_bias=HURRY, extra_body=asked)
    assert raw.choices[0].finish_reason == "stop"
    assert fits(raw.choices[0].text)


@pytest.mark.parametrize(
    "asked, param",
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
                "type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}}},
            "response_format.json_schema.schema.properties.a.uniqueItems",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
                "type": "object", "properties": {"a": {"type": "string", "format": "colour"}}}}}]},
            "tools[0].function.parameters.properties.a",
        ),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex"),
        ({"extra_body": {"structured_outputs": {"grammar": "start: lost"}}}, "structured_outputs.grammar"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_place(client, model, asked, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=ASK, **asked)
    assert error.value.param == param
    assert len(error.value.message) > 20
