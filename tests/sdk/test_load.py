"""Many clients at once, and clients that go away."""

import concurrent.futures
import random
import re
import time

import openai
import pytest

from test_errors import USER
from test_tools import WEATHER

CLIENTS = 32
REQUESTS = 96


def until(condition, within_s, what):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def server_errors(server):
    """Answers with a 5xx so far; before the model was loaded there were some, to /ready."""
    page = server.get("/metrics")[1]
    [count] = re.findall(r'^tandem_http_responses_total{.*status="5xx"} (\d+)$', page, re.MULTILINE)
    return int(count)


def idle(server):
    return server.metric("num_requests_running") == 0 and server.metric("num_requests_waiting") == 0


def test_a_client_that_goes_away_costs_nothing_more(server, client, model):
    until(lambda: idle(server), 60, "idle before")
    before, budget = server.metric("generation_tokens_total"), 7000
    stream = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=budget, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        next(stream)
    assert server.metric("num_requests_running") == 1
    stream.close()
    until(lambda: idle(server), 5, "the request is gone")
    assert server.metric("generation_tokens_total") - before < budget


def test_a_client_that_runs_out_of_patience(server, client, model):
    before, budget = server.metric("generation_tokens_total"), 7000
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(
            model=model, prompt="Once upon a time", max_tokens=budget, extra_body={"ignore_eos": True}
        )
    until(lambda: idle(server), 5, "the request is gone")
    assert server.metric("generation_tokens_total") - before < budget


def whole_chat(client, model, budget):
    answer = client.chat.completions.create(model=model, messages=USER, max_tokens=budget, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]


def streamed_chat(client, model, budget):
    chunks = list(
        client.chat.completions.create(
            model=model, messages=USER, max_tokens=budget, stream=True, stream_options={"include_usage": True}
        )
    )
    assert sum(choice.finish_reason is not None for chunk in chunks for choice in chunk.choices) == 1
    assert sum(chunk.usage is not None for chunk in chunks) == 1 and chunks[-1].usage


def tools(client, model, budget):
    answer = client.chat.completions.create(model=model, messages=USER, tools=[WEATHER], max_tokens=budget)
    assert answer.choices[0].finish_reason in {"stop", "length", "tool_calls"}


def scored_completion(client, model, budget):
    prompt = "word " * (10 * budget)
    answer = client.completions.create(model=model, prompt=prompt, echo=True, logprobs=1, max_tokens=1)
    assert len(answer.choices[0].logprobs.token_logprobs) == answer.usage.total_tokens


def cancelled_stream(client, model, budget):
    stream = client.chat.completions.create(model=model, messages=USER, max_tokens=budget * 50, stream=True)
    next(stream)
    stream.close()


def bad_request(client, model, budget):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=USER, temperature=budget + 3)


def test_many_clients_at_once(server, client, model):
    kinds = [whole_chat, streamed_chat, tools, scored_completion, cancelled_stream, bad_request]
    chance, errors_before = random.Random(7), server_errors(server)
    work = [(kinds[at % len(kinds)], chance.randint(1, 40)) for at in range(REQUESTS)]
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        done = [pool.submit(kind, client, model, budget) for kind, budget in work]
        # An answer with a 5xx is an exception of the client's, and raised here.
        for future in done:
            future.result(timeout=300)
    until(lambda: idle(server), 10, "idle after")
    assert server_errors(server) == errors_before
