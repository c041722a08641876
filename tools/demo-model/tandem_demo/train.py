"""Trains the model. Muon for the matrices inside the layers, AdamW for everything else."""
import time

BEGUN = time.time()  # before the slow imports: --max-seconds counts them

import argparse
import json
import math
import os
import shutil
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

from . import data, vocabulary
from .attention import FlexAttend, dense_attend
from .model import Shape, Tandem


def newton_schulz(g, steps=5):
    """Approximates the nearest orthogonal matrix of each [.., R, C] (Muon, Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.mT
        x = a * x + (b * y + c * y @ y) @ x
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; works on stacks of matrices."""

    def __init__(self, parameters, lr, momentum=0.95, decay=0.0):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = newton_schulz(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update.to(p.dtype), alpha=-group["lr"] * max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5)


def loss_of(model, ids, targets, target_weights, attend, untrained, dtype):
    """Mean cross-entropy over weighted targets, against all 201,088 ids: those never trained add exp(0) each."""
    weights = model.effective()
    hidden, balance = model(ids, attend, dtype, weights)
    logits = model.logits(hidden, weights).float()
    lse = torch.logaddexp(torch.logsumexp(logits, -1), torch.tensor(math.log(untrained), device=logits.device))
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    loss = ((lse - picked) * target_weights).sum() / target_weights.sum().clamp_min(1)
    return loss, balance


def arrange(arrays, device):
    """A shard's arrays to (ids, targets, weights, documents) on the device; a target never crosses into the next document."""
    rows, weights, documents = (torch.from_numpy(a.astype(np.int32)).to(device) for a in arrays)
    following = lambda t, fill: torch.cat([t[:, 1:], torch.full_like(t[:, :1], fill)], 1)
    target_weights = following(weights, 0).float() / 255 * (following(documents, -1) == documents)
    return rows, following(rows, 0).long() * (target_weights > 0), target_weights, documents


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--vocabulary", default=os.environ.get("TANDEM_O200K"))
    p.add_argument("--out", required=True)
    p.add_argument("--resume", help="folder of an earlier run to go on from")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--steps", type=int, default=8000)
    p.add_argument("--batch", type=int, default=32, help="rows of 2048 tokens in a step")
    p.add_argument("--max-seconds", type=float, default=1e9, help="the learning rate reaches its end by this time at the latest")
    p.add_argument("--lr", type=float, default=0.02, help="of Muon")
    p.add_argument("--lr-embedding", type=float, default=1.2e-3)
    p.add_argument("--lr-rest", type=float, default=1.5e-3)
    p.add_argument("--beta2-embedding", type=float, default=0.999, help="rare rows need a long memory: with a short one, noise between two occurrences becomes full steps")
    p.add_argument("--beta2-rest", type=float, default=0.99)
    p.add_argument("--focus", action="store_true", help="the second stage's mixture: more of what a first stage learns last")
    p.add_argument("--save-at", type=float, default=0.6, help="part of the run after which the weights are saved once before the end")
    p.add_argument("--cooldown", type=float, default=0.9, help="last part of the run over which the rates fall linearly")
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--shape", default="{}", help="JSON of changes to the shape")
    return p.parse_args(argv)


def build_optimizers(model, args):
    matrices = [p for n, p in model.named_parameters() if n in model.MATRICES]
    embedding = [model.embedding]
    rest = [p for n, p in model.named_parameters() if n not in model.MATRICES and n != "embedding"]
    adam = torch.optim.AdamW([dict(params=embedding, lr=args.lr_embedding, betas=(0.9, args.beta2_embedding)), dict(params=rest, lr=args.lr_rest, betas=(0.9, args.beta2_rest))],
                             eps=1e-10, weight_decay=0.0, fused=args.device == "cuda")
    return [Muon(matrices, args.lr, decay=0.01), adam]


def train(args):
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    rows = vocabulary.load_rows()
    model = Tandem(Shape(**json.loads(args.shape)), len(rows.ids)).to(args.device)
    if args.resume:
        load_weights(model, args.resume)
    optimizers = build_optimizers(model, args)
    starts = [[g["lr"] for g in o.param_groups] for o in optimizers]
    cuda = args.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    folder = tempfile.mkdtemp(prefix="tandem-shards-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    writers = data.ShardWriters(folder, args.vocabulary, args.seed, math.ceil(args.steps * args.batch / data.SHARD_ROWS) + 1, focus=args.focus)
    flex = FlexAttend(model.shape, data.LENGTH, args.device) if cuda else None

    def forward(ids, targets, weights, masks, documents):
        attend = flex.bind(masks) if cuda else dense_attend(model.shape, documents)
        return loss_of(model, ids, targets, weights, attend, rows.untrained, dtype)
    if cuda:
        forward = torch.compile(forward)
    clock, shard, at, waited, log, step, index, saved = None, None, 0, 0.0, [], 0, 0, False
    begun, seconds = time.time(), args.max_seconds - (time.time() - BEGUN)
    try:
        while step < args.steps:
            if shard is None or at >= data.SHARD_ROWS:
                before = time.time()
                shard, at, index = arrange(writers.take(index), args.device), 0, index + 1
                waited += time.time() - before
            batch = [t[at:at + args.batch] for t in shard]
            at += args.batch
            ids, targets, weights, documents = batch
            elapsed = time.time() - begun
            progress = max(step / args.steps, elapsed / seconds)
            if progress >= 1:
                break
            factor = min(1.0, (step + 1) / args.warmup, (1 - progress) / args.cooldown)
            for optimizer, rates in zip(optimizers, starts):
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate * factor
            masks = flex.masks(documents) if cuda else None
            loss, balance = forward(ids, targets, weights, masks, documents)
            (loss + 0.01 * balance).backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimizers[1].param_groups for p in g["params"]], 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            if not saved and progress >= args.save_at:
                saved = True
                save(model, args.out, log)
            if step == 10:
                clock = (time.time(), step)
            if step % 100 == 0 or step in (1, 2, 5, 10, 20, 50):
                value = loss.item()
                rate = (step - clock[1]) * args.batch * data.LENGTH / (time.time() - clock[0]) if clock and step > clock[1] else 0
                line = {"step": step, "loss": round(value, 4), "balance": round(balance.item(), 3), "seconds": round(time.time() - begun, 1),
                        "tokens_per_s": round(rate), "waited_s": round(waited, 1)}
                log.append(line)
                print(json.dumps(line), flush=True)
    finally:
        writers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    save(model, args.out, log)
    print(f"saved to {args.out} after {time.time() - BEGUN:.1f} s", flush=True)
    return model


PARTS = 4


def save(model, folder, log=()):
    """The rounded weights (exact in BF16) in parts of bounded size, the shape, and the log. A resumed run starts from them."""
    os.makedirs(folder, exist_ok=True)
    with torch.no_grad():
        state = {n: p.detach().to(torch.bfloat16).cpu().view(torch.int16).numpy() for n, p in model.effective().items()}
    flat = np.concatenate([a.ravel() for a in state.values()])
    for i, part in enumerate(np.array_split(flat, PARTS)):
        part.tofile(os.path.join(folder, f"weights.{i}.bin"))
    json.dump({"shape": model.shape.as_dict(), "rows": model.rows, "shapes": {n: list(a.shape) for n, a in state.items()}, "log": list(log)},
              open(os.path.join(folder, "training.json"), "w"))


def load_weights(model, folder):
    flat = torch.from_numpy(np.concatenate([np.fromfile(os.path.join(folder, f"weights.{i}.bin"), dtype=np.int16) for i in range(PARTS)])).view(torch.bfloat16)
    at = 0
    with torch.no_grad():
        for _, p in model.named_parameters():
            p.copy_(flat[at:at + p.numel()].view(p.shape))
            at += p.numel()
    assert at == flat.numel(), "the saved weights have another shape"


def load_model(folder, device="cpu"):
    about = json.load(open(os.path.join(folder, "training.json")))
    model = Tandem(Shape(**about["shape"]), about["rows"]).to(device)
    load_weights(model, folder)
    return model


if __name__ == "__main__":
    train(parse())
