"""Trains the model. Muon for the matrices inside the layers, AdamW for everything else.

One process a card; `torchrun --nproc-per-node N -m tandem_demo.train …` uses N cards, each with its own share of the text, the
gradients summed. Without torchrun there is one process and no exchange.
"""
import time

BEGUN = time.time()  # before the slow imports: --max-seconds counts them

import argparse
import json
import math
import os
import shutil
import tempfile
import zlib

import numpy as np
import torch
import torch.distributed as dist
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
    """Mean cross-entropy over weighted targets, against all 201,088 ids: those never trained add exp(0) each.

    Logits are computed only where there is a target; of more than LIVE of the positions the last lose theirs.
    """
    weights = model.effective()
    hidden, balance = model(ids, attend, dtype, weights)
    count = int(target_weights.numel() * LIVE)
    live = torch.argsort((target_weights.flatten() == 0).to(torch.uint8), stable=True)[:count]
    targets, target_weights = targets.flatten()[live], target_weights.flatten()[live]
    picked_hidden = hidden.float().flatten(0, 1)[live].to(dtype)  # in float32, since the way back adds, which BF16 does slowly
    logits = model.logits(picked_hidden, weights).float()
    lse = torch.logaddexp(torch.logsumexp(logits, -1), torch.tensor(math.log(untrained), device=logits.device))
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    loss = ((lse - picked) * target_weights).sum() / target_weights.sum().clamp_min(1)
    return loss, balance


# Part of the positions for which there is room among the targets.
LIVE = 0.5


def arrange(arrays, device):
    """A shard's arrays to (ids, targets, weights, documents) on the device; a target never crosses into the next document."""
    rows, weights, documents = (torch.from_numpy(a.astype(np.int32)).to(device) for a in arrays)
    following = lambda t, fill: torch.cat([t[:, 1:], torch.full_like(t[:, :1], fill)], 1)
    target_weights = following(weights, 0).float() / 255 * (following(documents, -1) == documents)
    return rows, following(rows, 0).long() * (target_weights > 0), target_weights, documents


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"))
    p.add_argument("--out", required=True)
    p.add_argument("--resume", help="folder of an earlier run to go on from")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--steps", type=int, default=8000)
    p.add_argument("--batch", type=int, default=32, help="rows of 2048 tokens in a step, on all cards together")
    p.add_argument("--max-seconds", type=float, default=1e9, help="from the start of the program; the learning rate reaches its end by then at the latest")
    p.add_argument("--lr", type=float, default=0.02, help="of Muon")
    p.add_argument("--lr-embedding", type=float, default=1.2e-3)
    p.add_argument("--lr-rest", type=float, default=1.5e-3)
    p.add_argument("--beta2-embedding", type=float, default=0.999, help="rare rows need a long memory: with a short one, noise between two occurrences becomes full steps")
    p.add_argument("--beta2-rest", type=float, default=0.99)
    p.add_argument("--save-at", type=float, default=0.6, help="part of the run after which the weights are saved once before the end, to OUT-early")
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


class Cards:
    """The processes that train together; alone, all of it does nothing."""

    def __init__(self, device):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = f"cuda:{self.rank}" if device == "cuda" else device
        if device == "cuda":
            torch.cuda.set_device(self.rank)
        if self.world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")

    def part(self):
        if self.world > 1:
            dist.destroy_process_group()

    def sum_gradients(self, parameters):
        if self.world > 1:
            for work in [dist.all_reduce(p.grad, async_op=True) for p in parameters]:
                work.wait()

    def same(self, value):
        """The value that the first process has, a float on the host: clocks differ, and rates must not."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def align(self, parameters):
        """Undoes what rounding in another order may have added up to."""
        if self.world > 1:
            for p in parameters:
                dist.broadcast(p.data, 0)


class Batches:
    """Batches of this process out of the shards its writers make: (ids, targets, weights, documents) on the device."""

    def __init__(self, args, cards):
        self.size, self.device = args.batch // cards.world, cards.device
        self.folder = tempfile.mkdtemp(prefix="tandem-shards-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        shards = math.ceil(args.steps * args.batch / data.SHARD_ROWS) + 2 * cards.world
        self.writers = data.ShardWriters(self.folder, args.vocabulary, args.seed, shards, first=cards.rank, stride=cards.world)
        self.shard, self.at, self.index, self.stride, self.waited = None, 0, cards.rank, cards.world, 0.0

    def next(self):
        if self.shard is None or self.at >= data.SHARD_ROWS:
            before = time.time()
            self.shard, self.at = arrange(self.writers.take(self.index), self.device), 0
            self.index += self.stride
            self.waited += time.time() - before
        self.at += self.size
        return [t[self.at - self.size:self.at] for t in self.shard]

    def stop(self):
        self.writers.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


# Steps between two looks at the clock, and between two alignments of the processes.
CLOCK_STEPS, ALIGN_STEPS = 10, 500


def train(args):
    cards = Cards(args.device)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    batches = Batches(args, cards)
    try:
        model, log = run(args, cards, batches)
    finally:
        batches.stop()
    if cards.rank == 0:
        save(model, args.out, log)
        print(f"saved to {args.out} after {time.time() - BEGUN:.1f} s", flush=True)
    cards.part()
    return model


def run(args, cards, batches):
    rows = vocabulary.load_rows()
    model = Tandem(Shape(**json.loads(args.shape)), len(rows.ids)).to(cards.device)
    if args.resume:
        load_weights(model, args.resume)
    parameters = list(model.parameters())
    optimizers = build_optimizers(model, args)
    starts = [[g["lr"] for g in o.param_groups] for o in optimizers]
    compute = step_function(model, rows, args)

    def gradients():
        loss, balance = compute(*batches.next())
        ((loss + 0.01 * balance) / cards.world).backward()
        cards.sum_gradients(parameters)
        return loss, balance
    for _ in range(2):
        gradients()  # compiles; these gradients are not used, and the clock starts after them
        model.zero_grad(set_to_none=True)
    begun, log, step, saved, progress = time.time(), [], 0, False, 0.0
    seconds = args.max_seconds - (begun - BEGUN)
    while step < args.steps:
        if step % CLOCK_STEPS == 0:
            progress = cards.same(max(step / args.steps, (time.time() - begun) / seconds))
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / args.warmup, (1 - progress) / args.cooldown)
        for optimizer, rates in zip(optimizers, starts):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor
        loss, balance = gradients()
        torch.nn.utils.clip_grad_norm_([p for g in optimizers[1].param_groups for p in g["params"]], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % ALIGN_STEPS == 0:
            cards.align(parameters)
        if not saved and progress >= args.save_at:
            saved = True
            if cards.rank == 0:
                save(model, args.out + "-early", log)
        if cards.rank == 0 and (step % 250 == 0 or step in (1, 2, 5, 10, 20, 50, 100)):
            taken = time.time() - begun
            log.append({"step": step, "loss": round(loss.item(), 4), "balance": round(balance.item(), 3), "seconds": round(taken, 1),
                        "tokens_per_s": round(step * args.batch * data.LENGTH / taken), "waited_s": round(batches.waited, 1)})
            print(json.dumps(log[-1]), flush=True)
    print(f"process {cards.rank}: {step} steps, {step * args.batch * data.LENGTH} tokens on all cards", flush=True)
    return model, log


def step_function(model, rows, args):
    """ids, targets, weights and documents of a batch -> (loss, balance); compiled on a GPU."""
    if args.device != "cuda":
        return lambda ids, targets, weights, documents: loss_of(model, ids, targets, weights, dense_attend(model.shape, documents), rows.untrained, torch.float32)
    flex = FlexAttend(model.shape, data.LENGTH, f"cuda:{torch.cuda.current_device()}")
    forward = torch.compile(lambda ids, targets, weights, masks: loss_of(model, ids, targets, weights, flex.bind(masks), rows.untrained, torch.bfloat16))
    return lambda ids, targets, weights, documents: forward(ids, targets, weights, flex.masks(documents))


def save(model, folder, log=()):
    """The rounded weights (exact in BF16), compressed, the shape, and the log. A resumed run starts from them."""
    os.makedirs(folder, exist_ok=True)
    with torch.no_grad():
        state = {n: p.detach().to(torch.bfloat16).cpu().view(torch.int16).numpy() for n, p in model.effective().items()}
    flat = np.concatenate([a.ravel() for a in state.values()])
    for i, part in enumerate(np.array_split(flat, PARTS)):
        write_whole(os.path.join(folder, f"weights.{i}.z"), zlib.compress(part.tobytes(), 6))
    about = {"shape": model.shape.as_dict(), "rows": model.rows, "shapes": {n: list(a.shape) for n, a in state.items()}, "log": list(log)}
    write_whole(os.path.join(folder, "training.json"), json.dumps(about).encode())


# Files of bounded size.
PARTS = 2


def write_whole(path, content):
    """A file is there complete or not at all."""
    with open(path + ".part", "wb") as file:
        file.write(content)
    os.replace(path + ".part", path)


def load_weights(model, folder):
    read = lambda i: zlib.decompress(open(os.path.join(folder, f"weights.{i}.z"), "rb").read())
    flat = torch.from_numpy(np.frombuffer(b"".join(read(i) for i in range(PARTS)), dtype=np.int16).copy()).view(torch.bfloat16)
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
