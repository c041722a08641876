"""What cannot be done is said precisely, with a 4xx, and harms nobody."""

import json

import openai
import pytest

USER = [{"role": "user", "content": "Hello"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

# What is wrong, the request, and the field that the error must name.
BAD_REQUESTS = [
    ("temperature", {"temperature": 9}, "temperature"),
    ("negative temperature", {"temperature": -0.5}, "temperature"),
    ("top_p", {"top_p": 1.5}, "top_p"),
    ("no choices", {"n": 0}, "n"),
    ("too many choices", {"n": 100_000}, "n"),
    ("no tokens", {"max_tokens": 0}, "max_tokens"),
    ("negative budget", {"max_tokens": -1}, "max_tokens"),
    ("bias for no token", {"logit_bias": {"99999999": 1}}, "logit_bias"),
    ("bias for a word", {"logit_bias": {"hello": 1}}, "logit_bias"),
    ("too many alternatives", {"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
    ("effort", {"reasoning_effort": "extreme"}, "reasoning_effort"),
    ("penalty", {"presence_penalty": 5}, "presence_penalty"),
    ("no messages", {"messages": []}, "messages"),
    ("a role nobody has", {"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
    ("a message without content", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("an image", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    (
        "a result that answers no call",
        {"messages": [*USER, {"role": "tool", "tool_call_id": "call_9", "content": "x"}]},
        "messages[1].tool_call_id",
    ),
    ("a tool without a function", {"tools": [{"type": "function"}]}, "tools"),
    ("a choice of no tool", {"tool_choice": "required"}, "tool_choice"),
]


@pytest.mark.parametrize(("fields", "param"), [pytest.param(*case[1:], id=case[0]) for case in BAD_REQUESTS])
def test_bad_requests_name_the_field(client, model, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": model, "messages": USER, **fields})
    assert error.value.type == "invalid_request_error"
    assert param in (error.value.param or ""), error.value.body
    assert error.value.body["message"]


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-17", messages=USER)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_prompt_longer_than_the_context(client, model, endpoint):
    words = "word " * 9000
    with pytest.raises(openai.BadRequestError) as error:
        if endpoint == "chat":
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}])
        else:
            client.completions.create(model=model, prompt=words)
    assert error.value.code == "context_length_exceeded"
    assert "8192" in error.value.message


def test_a_body_too_large(client, model):
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x" * 2_000_000}])
    assert error.value.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b"[1, 2]", 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": ' + b"[" * 5000, 400),
        ("POST", "/v1/completions", b'{"prompt": 5}', 400),
        ("POST", "/v1/completions", b'{"prompt": [-1]}', 400),
        ("POST", "/v1/completions", b'{"prompt": ""}', 400),
        ("GET", "/v1/chat/completions", None, 405),
        ("GET", "/v1/nothing/here", None, 404),
    ],
)
def test_what_no_client_should_send(server, method, path, body, status):
    got, text = server.request(method, path, body)
    assert got == status, text
    assert json.loads(text)["error"]["message"]


def test_and_after_all_that_it_still_works(server, client, model):
    assert client.chat.completions.create(model=model, messages=USER, max_tokens=2).usage.completion_tokens >= 1
    assert server.get("/health")[0] == 200
