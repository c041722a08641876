#!/usr/bin/env python3
"""Evaluates a served demo model on held-out generated data, over the OpenAI-compatible HTTP API.

    python3 evaluate.py --url http://127.0.0.1:8000/v1 --vocabulary o200k_base.tiktoken [--count 200] [--out results.json]

Conversations go to /chat/completions at temperature 0. What a server might constrain or hide goes to /completions as token ids:
JSON under a schema (no constrained decoding) and the well-formedness of harmony at temperature 1. Needs the packages tiktoken and
numpy; the HTTP client is the standard library's.
"""
import argparse
import concurrent.futures
import json
import os
import time
import urllib.error
import urllib.request

from tandem_demo import harmony, scoring, vocabulary
from tandem_demo.tasks import letters

REQUEST_DEADLINE_S = 300


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", "Authorization": "Bearer none"})
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_DEADLINE_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as refused:
        raise SystemExit(f"{url} answered {refused.code}: {refused.read().decode(errors='replace')[:500]}") from refused


def served_model(url):
    """The first name under which the server lists its model."""
    with urllib.request.urlopen(f"{url}/models", timeout=REQUEST_DEADLINE_S) as response:
        return json.load(response)["data"][0]["id"]


def chat_messages(conversation):
    """Our conversation as OpenAI messages; tool calls get ids in order."""
    messages, calls = [], 0
    if conversation["instructions"]:
        messages.append({"role": "system", "content": conversation["instructions"]})
    for message in conversation["messages"]:
        if message["role"] == "tool":
            messages.append({"role": "tool", "tool_call_id": f"call_{calls}", "content": message["content"]})
        elif "call" in message:
            calls += 1
            name, arguments = message["call"]
            messages.append({"role": "assistant", "content": None, "reasoning_content": message["analysis"],
                             "tool_calls": [{"id": f"call_{calls}", "type": "function", "function": {"name": name, "arguments": arguments}}]})
        elif message["role"] == "assistant":
            content = message["content"]
            messages.append({"role": "assistant", "content": "".join(content) if isinstance(content, list) else content})
        else:
            messages.append(message)
    return messages


def ask_chat(url, model, conversation, new_tokens):
    """(final text or None, call or None)"""
    body = {"model": model, "messages": chat_messages(conversation), "temperature": 0, "max_tokens": new_tokens, "reasoning_effort": conversation["effort"]}
    if conversation["tools"]:
        body["tools"] = [{"type": "function", "function": {k: v for k, v in tool.items() if v is not None}} for tool in conversation["tools"]]
    message = post(f"{url}/chat/completions", body)["choices"][0]["message"]
    if message.get("tool_calls"):
        function = message["tool_calls"][0]["function"]
        return None, (function["name"], function["arguments"])
    return message.get("content"), None


def ask_tokens(url, model, ids, new_tokens, temperature, seed):
    """Generated token ids, the stop token included."""
    body = {"model": model, "prompt": ids, "temperature": temperature, "max_tokens": new_tokens, "return_token_ids": True, "seed": seed,
            "stop_token_ids": [vocabulary.RETURN, vocabulary.CALL, vocabulary.PAD]}
    return post(f"{url}/completions", body)["choices"][0]["token_ids"]



def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000/v1")
    p.add_argument("--model", help="default: the one that the server lists first")
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"))
    p.add_argument("--count", type=int, default=200, help="examples of each task")
    p.add_argument("--sampled", type=int, default=1000, help="answers sampled at temperature 1 for well-formedness")
    p.add_argument("--concurrency", type=int, default=4)
    p.add_argument("--new-tokens", type=int, default=400)
    p.add_argument("--tasks", help="only these, comma separated")
    p.add_argument("--show", type=int, default=2, help="wrong answers printed for each task")
    p.add_argument("--out", help="file for the figures as JSON")
    a = p.parse_args()
    encoding, rows, url = vocabulary.load(a.vocabulary), vocabulary.load_rows(), a.url.rstrip("/")
    letters.set_lexicon(encoding, rows)
    a.model = a.model or served_model(url)
    pool, figures = concurrent.futures.ThreadPoolExecutor(a.concurrency), {}
    chosen = set(a.tasks.split(",")) if a.tasks else set(scoring.TARGETS)

    def answer(item):
        conversation, _ = item
        if conversation["response_format"]:
            ids = ask_tokens(url, a.model, harmony.prompt_ids(encoding, conversation), a.new_tokens, 0, 1)
            return harmony.parse_completion(encoding, ids)[2:]
        return ask_chat(url, a.model, conversation, a.new_tokens)

    for task, _, _ in scoring.TASKS:
        if task not in chosen:
            continue
        begun, items = time.time(), scoring.examples(task, a.count)
        right, wrong = 0, []
        for (conversation, check), (final, call) in zip(items, pool.map(answer, items)):
            good = scoring.correct(check, final, call)
            right += good
            if not good:
                wrong.append({"asked": conversation["messages"][-1]["content"][-200:], "expected": {k: v for k, v in check.items() if k != "schema"}, "got": call or final})
        record(figures, task, right, len(items), time.time() - begun, a.out)
        for case in wrong[:a.show]:
            print("   wrong:", json.dumps(case, ensure_ascii=False))
    if "well_formed" in chosen:
        begun, conversations = time.time(), scoring.well_formedness_prompts(a.sampled)

        def sample(numbered):
            number, conversation = numbered
            ids = ask_tokens(url, a.model, harmony.prompt_ids(encoding, conversation), a.new_tokens, 1.0, number)
            formed, _, _, call = harmony.parse_completion(encoding, ids)
            return formed, formed and harmony.offered(call, conversation["tools"])
        formed, offered = (sum(column) for column in zip(*pool.map(sample, enumerate(conversations))))
        record(figures, "well_formed", formed, a.sampled, time.time() - begun, a.out)
        record(figures, "well_formed_offered", offered, a.sampled, time.time() - begun, a.out)


def record(figures, task, right, count, seconds, out):
    """Prints a task's figure, and writes all so far to the file `out` where there is one."""
    target, figure = scoring.TARGETS[task], right / count
    figures[task] = {"share": round(figure, 4), "of": count, "target": target}
    met = "" if target is None else f"  target {target:.3f} {'met' if figure >= target else 'MISSED'}"
    print(f"{task:18} {figure:.3f} of {count}{met}  ({seconds:.0f} s)", flush=True)
    if out:
        with open(out, "w") as file:
            json.dump(figures, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
