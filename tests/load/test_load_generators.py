"""Load generators that people use: they run, count what was generated, and see no error.

Both count tokens by themselves where they can, with a tokenizer of one token per byte that is made here: the usual ones
would have to be fetched.
"""

import asyncio
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server import REPOSITORY

BOOK_URL = "http://127.0.0.1/book"
PROMPT_TOKENS, OUTPUT_TOKENS, RUNS = 128, 16, 2


@pytest.fixture
def home(tmp_path):
    """A home with a tokenizer in it, and with a text where llama-benchy keeps those that it has fetched."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    cache = tmp_path / ".cache" / "llama-benchy"
    cache.mkdir(parents=True)
    name = hashlib.md5(BOOK_URL.encode()).hexdigest()
    (cache / f"{name}.txt").write_text((REPOSITORY / "README.md").read_text() * 4)
    return tmp_path


@pytest.mark.parametrize("streams", [1, 4])
def test_llama_benchy(server, model, home, streams):
    before = server.metric("generation_tokens_total")
    run = [pathlib.Path(sys.executable).parent / "llama-benchy", "--base-url", f"{server.url}/v1", "--model", model]
    run += ["--tokenizer", home / "tokenizer.json", "--book-url", BOOK_URL, "--skip-coherence", "--exact-tg"]
    run += ["--pp", str(PROMPT_TOKENS), "--tg", str(OUTPUT_TOKENS), "--runs", str(RUNS), "--concurrency", str(streams)]
    run += ["--exit-on-first-fail", "--format", "json", "--save-result", home / "result.json"]
    environment = os.environ | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, cwd=home, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    [benchmark] = json.loads((home / "result.json").read_text())["benchmarks"]
    # Throughput is measured for each run, the time to the first answer for each request.
    for figure, count in [("pp_throughput", RUNS), ("tg_throughput", RUNS), ("ttfr", RUNS * streams)]:
        values = benchmark[figure]["values"]
        assert len(values) == count and all(value > 0 for value in values), benchmark
    # It asks for exactly so many tokens, and warms up besides.
    generated = server.metric("generation_tokens_total") - before
    assert generated >= RUNS * streams * OUTPUT_TOKENS


def test_llmeter(server, model):
    from llmeter.endpoints.openai import OpenAICompletionStreamEndpoint
    from llmeter.runner import Runner

    endpoint = OpenAICompletionStreamEndpoint(model, base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    payload = endpoint.create_payload("What is Tandem?", max_tokens=OUTPUT_TOKENS)
    quiet = {"disable_per_client_progress_bar": True, "disable_clients_progress_bar": True}
    before = server.metric("generation_tokens_total")
    result = asyncio.run(Runner(endpoint).run(payload=payload, clients=4, n_requests=3, **quiet))
    stats = result.stats
    assert (stats["total_requests"], stats["failed_requests"]) == (12, 0), stats
    assert stats["total_output_tokens"] == server.metric("generation_tokens_total") - before > 0
    assert stats["time_to_last_token-p90"] > 0
