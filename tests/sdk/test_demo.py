"""The demonstration model makes sense through the API: reasoning, effort, memory, stop strings, JSON."""

import json

import pytest

pytestmark = pytest.mark.demo


def ask(client, model, *turns, **more):
    """The reply to a conversation of user, assistant, user, ... turns."""
    messages = [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(turns)]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, **more).choices[0]


def reasoning(choice):
    return choice.message.model_extra.get("reasoning") or ""


def test_it_counts_letters(client, model):
    choice = ask(client, model, "How many letters are in the word window?")
    assert choice.finish_reason == "stop"
    assert "6" in choice.message.content or "six" in choice.message.content.lower()


def test_effort_lengthens_reasoning(client, model):
    questions = ["How many letters are in the word garden?", "What is 27 + 45?", "Reverse the word river."]
    length = {
        effort: sum(len(reasoning(ask(client, model, question, reasoning_effort=effort))) for question in questions)
        for effort in ["low", "medium", "high"]
    }
    assert 0 < length["low"] < length["medium"] < length["high"]


def test_reasoning_streams_before_the_answer(client, model):
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is 27 + 45?"}],
        temperature=0,
        reasoning_effort="high",
        stream=True,
    )
    kinds, content = [], ""
    for chunk in stream:
        delta = chunk.choices[0].delta
        content += delta.content or ""
        if (delta.model_extra or {}).get("reasoning"):
            kinds.append("reasoning")
        elif delta.content:
            kinds.append("content")
    assert kinds == sorted(kinds, reverse=True) and {"reasoning", "content"} == set(kinds)
    assert "72" in content


def test_a_budget_that_ends_within_reasoning(client, model):
    choice = ask(client, model, "What is 27 + 45?", reasoning_effort="high", max_tokens=6)
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert reasoning(choice)


def test_it_remembers(client, model):
    choice = ask(client, model, "My name is Grace.", "Nice to meet you, Grace.", "What is my name?")
    assert "Grace" in choice.message.content


def test_stop_strings_see_only_what_the_user_sees(client, model):
    whole = ask(client, model, "What is 27 + 45?", reasoning_effort="high")
    word = next(word for word in whole.message.content.split() if word in reasoning(whole))
    stopped = ask(client, model, "What is 27 + 45?", reasoning_effort="high", stop=[word])
    assert reasoning(stopped) == reasoning(whole)
    assert stopped.message.content == whole.message.content[: whole.message.content.index(word)]
    assert stopped.finish_reason == "stop"


def test_log_probabilities_of_the_visible_text(client, model):
    choice = ask(client, model, "Hello!", logprobs=True, top_logprobs=3)
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    for entry in choice.logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        # At temperature 0 the most likely token was taken.
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_json_on_request(client, model):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    choice = ask(
        client,
        model,
        "Grace is 36 years old. Give me her name and age.",
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    assert json.loads(choice.message.content) == {"name": "Grace", "age": 36}
