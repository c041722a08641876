#!/usr/bin/env python3
"""Records anew what the demonstration model says to the prompts of tests/golden/demo.json, after its weights have changed.

    tandem serve --exact --port 8000 &
    python3 record_goldens.py --url http://127.0.0.1:8000/v1

Exact mode says the same on every machine. The replies are printed where the vocabulary file is named: read them before committing.
"""
import argparse
import json
import os

from evaluate import post, served_model
from tandem_demo import vocabulary

GOLDENS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden", "demo.json")
# As in tests/e2e/demo.rs.
LIMITS = {"temperature": 0, "max_tokens": 160, "return_token_ids": True, "stop_token_ids": [vocabulary.RETURN, vocabulary.CALL]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of a server in exact mode")
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"))
    p.add_argument("--goldens", default=GOLDENS)
    a = p.parse_args()
    encoding = vocabulary.load(a.vocabulary) if a.vocabulary else None
    with open(a.goldens) as file:
        conversations = json.load(file)
    url, changed = a.url.rstrip("/"), 0
    model = served_model(url)
    for conversation in conversations:
        reply = post(f"{url}/completions", {"model": model, "prompt": conversation["prompt"]} | LIMITS)["choices"][0]["token_ids"]
        changed += reply != conversation["reply"]
        conversation["reply"] = reply
        if encoding:
            print(f"{conversation['name']}: {encoding.decode(reply)}", flush=True)
    with open(a.goldens, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(conversation) for conversation in conversations) + "\n]\n")
    print(f"{changed} of {len(conversations)} replies changed")


if __name__ == "__main__":
    main()
