"""lm-evaluation-harness runs, in each of the ways in which it scores a model."""

import math
import pathlib

from lm_eval import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

TASKS = pathlib.Path(__file__).parent / "lm_eval_tasks"


class RemoteTokens:
    """The server's tokenizer, in the place of one that the harness would download from a hub."""

    eos_token_id = bos_token_id = 199999

    def __init__(self, server):
        self.server = server

    def encode(self, text):
        return self.server.post("/tokenize", {"prompt": text})["tokens"]

    def decode(self, tokens):
        return self.server.post("/detokenize", {"tokens": tokens})["prompt"]


class Harness(LocalCompletionsAPI):
    """The harness's own client of completion servers, with that tokenizer. Prompts go out as token ids."""

    def __init__(self, server, model):
        super().__init__(
            base_url=f"{server.url}/v1/completions",
            model=model,
            tokenizer_backend="none",
            num_concurrent=4,
            max_retries=1,
            max_length=2048,
            eos_string="<|endoftext|>",
        )
        self.tokenizer_backend, self.tokenizer, self.tokenized_requests = "remote", RemoteTokens(server), True


def test_the_harness_runs(server, model, monkeypatch):
    # The harness looks for its own tasks' data on a hub unless told not to.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    names = ["tiny_choices", "tiny_answers", "tiny_perplexity"]
    results = simple_evaluate(
        Harness(server, model), tasks=names, task_manager=TaskManager(include_path=str(TASKS), include_defaults=False)
    )["results"]
    assert set(results) == set(names)
    assert results["tiny_choices"]["acc,none"] in {0, 0.25, 0.5, 0.75, 1}
    assert results["tiny_answers"]["exact_match,none"] <= 1
    # Nothing that reads English finds more than a few bits in a byte of it, and guessing evenly among all tokens gives 4.
    assert 0 < results["tiny_perplexity"]["bits_per_byte,none"] < 10 and math.isfinite(
        results["tiny_perplexity"]["bits_per_byte,none"]
    )
