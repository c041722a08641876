"""What a conversation has said before is not computed again, and usage proves it."""

from test_tools import WEATHER


def check_turns(usages):
    """Every turn reads all that the turn before it was asked from the cache, to the token."""
    for before, now in zip(usages, usages[1:]):
        assert now.prompt_tokens > before.prompt_tokens
        cached = now.prompt_tokens_details.cached_tokens
        assert cached >= before.prompt_tokens, [
            (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) for usage in usages
        ]


def test_ten_turns(client, model):
    messages, usages = [{"role": "system", "content": "You know all about rivers."}], []
    for turn in range(10):
        messages.append({"role": "user", "content": f"Tell me more about river number {turn}, please."})
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=30, seed=turn)
        usages.append(answer.usage)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content or "Well."})
    check_turns(usages)


def test_ten_turns_with_tool_calls(client, model):
    messages, usages = [{"role": "user", "content": "I am planning a journey."}], []
    for turn in range(10):
        call = {"name": "get_weather", "arguments": f'{{"city": "City {turn}"}}'}
        call = {"id": f"call_{turn}", "type": "function", "function": call}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{turn}", "content": f"{turn + 10} degrees and rain"},
        ]
        answer = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], max_tokens=4)
        usages.append(answer.usage)
    check_turns(usages)


def test_two_people_share_a_preamble(client, model):
    preamble = "You answer questions about the harbour of a small town. " * 20
    for name in ["Ada", "Grace"]:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": preamble}, {"role": "user", "content": f"I am {name}."}],
            max_tokens=2,
        )
    assert answer.usage.prompt_tokens_details.cached_tokens > 150
