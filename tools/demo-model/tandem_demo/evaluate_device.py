"""The evaluation run directly on torch, with the scoring that evaluate.py uses over HTTP."""
import argparse
import json
import os
import time

import torch

from . import harmony, scoring, vocabulary
from .decode import Decoder
from .tasks import letters
from .train import load_model


def batches(prompts, size):
    """Prompts of like length together, to save padding: yields (indices, prompts)."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), size):
        chosen = order[at:at + size]
        yield chosen, [prompts[i] for i in chosen]


def continue_all(decoder, prompts, size, temperature=0.0, new_tokens=300):
    made = [None] * len(prompts)
    for n, (chosen, part) in enumerate(batches(prompts, size)):
        for i, ids in zip(chosen, decoder.generate(part, new_tokens, temperature, seed=n)):
            made[i] = ids
    return made


def run(model, vocabulary_path, device, count, sampled, size=256, show=3, tasks=None):
    encoding, rows = vocabulary.load(vocabulary_path), vocabulary.load_rows()
    letters.set_lexicon(encoding, rows)
    decoder, figures = Decoder(model, rows, device, torch.bfloat16 if device == "cuda" else torch.float32), {}
    for task, _, target in scoring.TASKS:
        if tasks and task not in tasks:
            continue
        begun, items = time.time(), scoring.examples(task, count)
        prompts = [harmony.prompt_ids(encoding, c) for c, _ in items]
        right, wrong = 0, []
        for (conversation, check), ids in zip(items, continue_all(decoder, prompts, size)):
            formed, _, final, call = harmony.parse_completion(encoding, ids)
            good = formed and scoring.correct(check, final, call)
            right += good
            if not good:
                wrong.append((conversation["messages"][-1]["content"][-300:], {k: v for k, v in check.items() if k != "schema"}, encoding.decode([i for i in ids if i >= 0])[-400:]))
        figures[task] = round(right / len(items), 4)
        print(f"{task}: {figures[task]:.3f}" + (f" (target {target})" if target else "") + f"  {time.time() - begun:.1f} s", flush=True)
        for case in wrong[:show]:
            print("   WRONG", json.dumps(case, ensure_ascii=False), flush=True)
    if not sampled:
        return figures
    conversations = scoring.well_formedness_prompts(sampled)
    prompts = [harmony.prompt_ids(encoding, c) for c in conversations]
    formed, bad = 0, []
    for ids in continue_all(decoder, prompts, size, temperature=1.0, new_tokens=400):
        good = -1 not in ids and harmony.parse_completion(encoding, ids)[0]
        formed += good
        if not good:
            bad.append(encoding.decode([i for i in ids if i >= 0])[-300:] + f" #{len(ids)} {'UNTRAINED' if -1 in ids else ''}")
    figures["well_formed"] = round(formed / max(1, len(conversations)), 4)
    print(f"well_formed at temperature 1: {figures['well_formed']:.4f} of {len(conversations)}")
    for case in bad[:8]:
        print("   BAD", json.dumps(case, ensure_ascii=False))
    return figures


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"))
    p.add_argument("--run", required=True, help="folder written by train.py")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--count", type=int, default=300)
    p.add_argument("--sampled", type=int, default=2000)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--show", type=int, default=3)
    p.add_argument("--tasks", help="only these, comma separated")
    p.add_argument("--out")
    args = p.parse_args()
    measured = run(load_model(args.run, args.device), args.vocabulary, args.device, args.count, args.sampled, args.size, args.show, args.tasks and args.tasks.split(","))
    if args.out:
        json.dump(measured, open(args.out, "w"), indent=1)
