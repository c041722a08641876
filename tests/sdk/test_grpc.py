"""The gRPC service through grpcio, from the definition alone; and the example for other languages."""

import os
import re
import subprocess
import sys
import threading

import grpc
import pytest

from server import REPOSITORY, Server

EXAMPLE = REPOSITORY / "examples" / "python" / "grpc_chat.py"
sys.path.insert(0, str(EXAMPLE.parent))

import grpc_chat  # noqa: E402
from grpc_chat import messages, services  # noqa: E402

QUESTION = "How many letters are in the word SGLang?"


@pytest.fixture(scope="module")
def address(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("grpc") / "log"
    server = Server([request.config.getoption("--tandem"), "serve"], log, context="2048", grpc_port="0")
    yield re.search(r"gRPC on http://([0-9.:]+)", log.read_text())[1]
    assert server.stop() == 0, log.read_text()


@pytest.fixture(scope="module")
def inference(address):
    with grpc.insecure_channel(address) as channel:
        yield services.InferenceStub(channel)


def asking(question, **sampling):
    message = messages.Message(role=messages.ROLE_USER, content=question)
    return messages.ChatRequest(messages=[message], sampling=messages.Sampling(**sampling))


def test_a_stream_is_the_reply_in_pieces(inference):
    request = asking(QUESTION, temperature=0, max_tokens=200)
    whole = inference.Chat(request, timeout=180)
    events = list(inference.ChatStream(request, timeout=180))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1], kinds.count("finished")) == ("started", "finished", 1)
    assert "".join(event.content for event in events) == whole.content
    assert "".join(event.reasoning for event in events) == whole.reasoning
    assert events[-1].finished.finish == whole.finish
    assert events[-1].finished.usage.generated_tokens == whole.usage.generated_tokens > 0


def test_tokens_and_their_log_probabilities(inference):
    prompt = inference.Tokenize(messages.TokenizeRequest(text="Once upon a time"), timeout=60).tokens
    sampling = messages.Sampling(max_tokens=5, temperature=0)
    request = messages.GenerateRequest(prompt=prompt, sampling=sampling, top_logprobs=2)
    events = list(inference.Generate(request, timeout=180))
    tokens = [event.token for event in events if event.WhichOneof("event") == "token"]
    assert 1 <= len(tokens) <= 5 and len(tokens) == events[-1].finished.usage.generated_tokens
    for token in tokens:
        # The likeliest is taken, and is the first of the alternatives.
        assert token.token == token.logprob.token == token.logprob.top[0].token
        assert len(token.logprob.top) == 2 and token.logprob.logprob <= 0
    text = inference.Detokenize(messages.DetokenizeRequest(tokens=prompt), timeout=60).text
    assert text == "Once upon a time"


def test_errors_name_the_field(inference):
    with pytest.raises(grpc.RpcError) as raised:
        inference.Chat(asking("Hi", temperature=3), timeout=60)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "sampling.temperature" in raised.value.details()


def test_deadlines_and_cancellation(inference):
    endless = asking("Hi", max_tokens=1500, ignore_eos=True)
    with pytest.raises(grpc.RpcError) as raised:
        list(inference.ChatStream(endless, timeout=0.3))
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    call = inference.ChatStream(endless, timeout=180)
    next(call)
    call.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    assert raised.value.code() == grpc.StatusCode.CANCELLED
    idle = threading.Event()
    for _ in range(600):
        engine = inference.ClusterStatus(messages.ClusterStatusRequest(), timeout=60).engine
        if engine.running + engine.waiting == 0:
            break
        idle.wait(0.1)
    assert engine.running + engine.waiting == 0, "what nobody waits for is not computed"


@pytest.mark.demo
def test_the_example_answers(address):
    parts = list(grpc_chat.ask(address, QUESTION))
    assert "6" in "".join(text for kind, text in parts if kind == "content")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    command = [sys.executable, str(EXAMPLE), address, QUESTION]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=True).stdout
    assert "6" in printed and re.search(r"\(\d+ tokens\)", printed), printed
