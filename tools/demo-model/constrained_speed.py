#!/usr/bin/env python3
"""How fast the demonstration model writes JSON that it was asked for, held to the schema and free, on a running server.

    python3 constrained_speed.py [--url http://127.0.0.1:8000/v1] [--count 40] [--temperature 0]

The prompts are of the kind it was trained on, and the same in both cases: what `response_format` adds to the instructions is
written there by hand where nothing is to be held. Each pair is asked in turns, after a short request that has the prompt cached
and the grammar compiled. What is compared is the time from the first to the last word that is streamed. Needs nothing but Python.
"""
import argparse
import json
import random
import statistics
import time
import urllib.request

from tandem_demo.tasks import structured

REQUEST_DEADLINE_S = 60
# Fewer tokens say little about speed.
TOKENS_MIN = 8


def stream(url, body):
    """Seconds per token after the first, or None where there are too few; and the answer."""
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    words, tokens, answer = [], 0, ""
    with urllib.request.urlopen(request, timeout=REQUEST_DEADLINE_S) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: "):])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                if choice["delta"].get("content") or choice["delta"].get("reasoning_content"):
                    words.append(time.perf_counter())
                    answer += choice["delta"].get("content") or ""
    return (words[-1] - words[0]) / (tokens - 1) if tokens >= TOKENS_MIN else None, answer


def bodies(conversation, temperature, seed):
    """The same question, free and held to its schema."""
    form, instructions = conversation["response_format"], conversation["instructions"]
    schema = json.dumps(form["schema"], separators=(",", ":"), ensure_ascii=False)
    asked = [message for message in conversation["messages"] if message["role"] == "user"]
    common = {"temperature": temperature, "seed": seed, "max_tokens": 200, "reasoning_effort": "low", "stream": True,
              "stream_options": {"include_usage": True}}
    written = f"{instructions}\n\n# Response Formats\n\n## {form['name']}\n\n{schema}"
    free = {**common, "messages": [{"role": "developer", "content": written}, *asked]}
    held = {**common, "messages": [{"role": "developer", "content": instructions}, *asked],
            "response_format": {"type": "json_schema", "json_schema": {"name": form["name"], "schema": form["schema"], "strict": True}}}
    return free, held


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000/v1")
    p.add_argument("--count", type=int, default=40, help="questions")
    p.add_argument("--temperature", type=float, default=0)
    a = p.parse_args()
    rng, shares, seconds, same = random.Random(5), [], [[], []], 0
    while len(shares) < a.count:
        conversation = structured.structured(rng, False)
        conversation = conversation[0] if isinstance(conversation, tuple) else conversation
        if not conversation["response_format"] or not conversation["instructions"]:
            continue
        both = bodies(conversation, a.temperature, len(shares))
        for body in both:
            stream(a.url, {**body, "max_tokens": 2})
        order = [0, 1] if len(shares) % 2 else [1, 0]
        found = {index: stream(a.url, both[index]) for index in order}
        if found[0][0] is None or found[1][0] is None:
            continue
        for index in order:
            seconds[index].append(found[index][0])
        shares.append(found[0][0] / found[1][0])
        same += found[0][1] == found[1][1]
    free, held = (1 / statistics.median(some) for some in seconds)
    print(f"{len(shares)} pairs: {free:.0f} tokens/s free, {held:.0f} held; median of the ratios {100 * statistics.median(shares):.1f} %; "
          f"{same} answers the same")


if __name__ == "__main__":
    main()
