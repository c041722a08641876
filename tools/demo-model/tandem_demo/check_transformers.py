"""Compares our forward pass with transformers' GptOssForCausalLM on an exported, expanded checkpoint (in float32)."""
import argparse
import os
import random

import torch
import torch.nn.functional as F

from . import data, harmony, vocabulary
from .attention import dense_attend
from .tasks import letters
from .train import load_model

# Largest difference of a log-probability between two float32 computations of this size in different order.
TOLERANCE = 2e-3


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", required=True)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"))
    p.add_argument("--count", type=int, default=6)
    a = p.parse_args()
    from transformers import GptOssForCausalLM, Mxfp4Config
    other = GptOssForCausalLM.from_pretrained(a.checkpoint, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32, attn_implementation="eager").eval()
    encoding, rows = vocabulary.load(a.vocabulary), vocabulary.load_rows()
    letters.set_lexicon(encoding, rows)
    model, rng, worst = load_model(a.run), random.Random(11), 0.0
    for _ in range(a.count):
        ids = harmony.Renderer(encoding).conversation(data.draw(rng))[0]
        with torch.no_grad():
            theirs = F.log_softmax(other(torch.tensor([ids])).logits[0].float(), -1)[:, torch.from_numpy(rows.ids)]
            compact = torch.from_numpy(rows.of_token[ids].astype("int64"))[None]
            hidden, _ = model(compact, dense_attend(model.shape, torch.zeros_like(compact)), torch.float32)
            logits = model.logits(hidden)[0]
            ours = logits - torch.logaddexp(torch.logsumexp(logits, -1, keepdim=True), torch.tensor(float(rows.untrained)).log())
        agree = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        likely = theirs > -12
        difference = (ours - theirs)[likely].abs().max().item()
        worst = max(worst, difference)
        print(f"{len(ids)} tokens: largest difference of a log-probability {difference:.2e}, same argmax {agree:.4f}", flush=True)
    assert worst < TOLERANCE, "the two forward passes differ"


if __name__ == "__main__":
    main()
