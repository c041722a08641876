"""Text completions, and the log-probabilities that evaluation harnesses live on."""

import pytest

PROMPT = "The river runs past seven green stones and under the old bridge"


def tokens_of(server, text):
    return server.post("/tokenize", {"prompt": text})["tokens"]


def test_tokens_there_and_back(server):
    text = "Grüße, 世界! 👋🏽 def f(x): return x ** 2\n"
    assert server.post("/detokenize", {"tokens": tokens_of(server, text)})["prompt"] == text


def test_text_and_token_ids_are_the_same_prompt(server, client, model):
    by_text = client.completions.create(model=model, prompt=PROMPT, max_tokens=1)
    by_ids = client.completions.create(model=model, prompt=tokens_of(server, PROMPT), max_tokens=1)
    assert by_text.usage.prompt_tokens == by_ids.usage.prompt_tokens == len(tokens_of(server, PROMPT))


def test_a_batch_of_prompts_keeps_its_order(server, client, model):
    prompts = ["one", "two two", "three three three"]
    for batch in [prompts, [tokens_of(server, prompt) for prompt in prompts]]:
        answer = client.completions.create(model=model, prompt=batch, max_tokens=3, n=2, echo=True)
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert all(choice.text.startswith(prompts[choice.index // 2]) for choice in answer.choices)


def test_the_prompt_is_scored_token_by_token(server, client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, echo=True, logprobs=2, max_tokens=0)
    scores = answer.choices[0].logprobs
    assert answer.choices[0].text == "".join(scores.tokens) == PROMPT
    assert len(scores.tokens) == len(tokens_of(server, PROMPT)) == answer.usage.prompt_tokens
    assert scores.text_offset == [len("".join(scores.tokens[:at])) for at in range(len(scores.tokens))]
    assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
    assert all(score < 0 for score in scores.token_logprobs[1:])
    for token, score, top in zip(scores.tokens[1:], scores.token_logprobs[1:], scores.top_logprobs[1:]):
        assert len(top) in {2, 3} and top.get(token) == pytest.approx(score)


def test_what_was_generated_greedily_is_greedy_when_scored(server, client, model):
    # The default, fast mode rounds differently when a token is computed in a longer chunk.
    rounding = 0.1
    generated = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1, extra_body={"return_token_ids": True}
    )
    ids = generated.choices[0].token_ids
    scored = client.completions.create(
        model=model, prompt=tokens_of(server, PROMPT) + ids, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    scores = scored.choices[0].logprobs
    # lm-evaluation-harness reads them thus: the prompt's, then one more for the token it did not want.
    own = slice(-1 - len(ids), -1)
    assert scores.token_logprobs[own] == pytest.approx(generated.choices[0].logprobs.token_logprobs, abs=rounding)
    for score, top in zip(scores.token_logprobs[own], scores.top_logprobs[own]):
        assert score >= max(top.values()) - rounding


def test_a_stream_adds_up(client, model):
    chunks = list(
        client.completions.create(
            model=model,
            prompt=PROMPT,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert all(chunk.object == "text_completion" for chunk in chunks)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1])
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12


def greedy(client, model, **more):
    return client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0, **more).choices[0]


def test_stop_strings_end_the_text_before_them(client, model):
    greedy(client, model)  # From now on the prompt comes from the cache, so that it is computed the same each time.
    whole = greedy(client, model).text
    stop = whole[len(whole) // 2 :][:3]
    stopped = greedy(client, model, stop=["never in there", stop])
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_repeats(client, model):
    def sampled(seed):
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=16, temperature=1, seed=seed)

    sampled(1)
    assert sampled(1).choices[0].text == sampled(1).choices[0].text != sampled(2).choices[0].text


def test_a_bias_decides(client, model):
    answer = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=4,
        temperature=0,
        logit_bias={"1000": 100},
        extra_body={"return_token_ids": True},
    )
    assert answer.choices[0].token_ids == [1000] * 4


def test_exactly_as_many_tokens_as_asked_for(client, model):
    answer = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=40, extra_body={"ignore_eos": True, "min_tokens": 40}
    )
    assert answer.usage.completion_tokens == 40
