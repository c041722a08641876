"""Chat completions: shapes that hold whatever the model says."""

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello! How are you?"}]


def check_usage(usage, budget):
    assert usage.prompt_tokens > 20
    assert 1 <= usage.completion_tokens <= budget
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert 0 <= usage.completion_tokens_details.reasoning_tokens <= usage.completion_tokens


def test_an_answer(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=24)
    assert (answer.object, answer.model) == ("chat.completion", model)
    assert answer.id.startswith("chatcmpl-") and answer.created > 1.7e9
    [choice] = answer.choices
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.finish_reason in {"stop", "length"}
    assert isinstance(choice.message.content, str) and not choice.message.tool_calls
    extra = choice.message.model_extra
    assert extra.get("reasoning") == extra.get("reasoning_content")
    check_usage(answer.usage, budget=24)


def test_a_stream_with_usage(client, model):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert {chunk.id for chunk in chunks} == {last.id}
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] in {"stop", "length"} and not any(reasons[:-1])
    assert last.choices == []
    check_usage(last.usage, budget=24)


def test_a_stream_without_usage(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_several_choices(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens <= 24


def test_both_names_of_the_budget(client, model):
    for budget in [{"max_tokens": 5}, {"max_completion_tokens": 5}]:
        answer = client.chat.completions.create(
            model=model, messages=HELLO, **budget, extra_body={"ignore_eos": True, "min_tokens": 5}
        )
        assert answer.usage.completion_tokens == 5, budget
        assert answer.choices[0].finish_reason == "length"


def test_everything_a_client_may_add(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "developer", "content": "Speak plainly."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "ada"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Once more."},
        ],
        max_tokens=8,
        temperature=0.7,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        logit_bias={"100": -5},
        seed=1,
        stop=["\n\n", "STOP"],
        user="someone",
        metadata={"a": "b"},
        store=False,
        reasoning_effort="low",
        extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "a_field_of_tomorrow": {"x": 1}},
    )
    assert answer.choices[0].finish_reason in {"stop", "length"}
