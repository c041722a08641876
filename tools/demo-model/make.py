#!/usr/bin/env python3
"""Makes the demonstration model: training text, training, checkpoint, checks and evaluation.

    python3 make.py --vocabulary o200k_base.tiktoken --tandem ../../target/release/tandem

Training wants one GPU or several of one machine (--cards; 9 minutes on two H100); everything else runs on a CPU. Everything comes
from the seed below. The text is generated while training goes on, so there is no separate data to keep.
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "..", "models", "tandem-demo")
START_DEADLINE_S = 120

# The weights in the repository were trained by the clock and came to 12,800 steps; by steps the schedule is the same and does not
# depend on the speed of a GPU. They were trained with 776 rows more, which hardly any text holds; those were set to zero afterwards.
RECIPE = ["--seed", "7", "--steps", "12800", "--batch", "32", "--lr", "0.02", "--lr-embedding", "1.2e-3", "--lr-rest", "1.5e-3", "--beta2-embedding", "0.999",
          "--beta2-rest", "0.99", "--cooldown", "0.9"]
RENDEZVOUS = ["--master-addr", "127.0.0.1", "--master-port", "29500"]


def module(name, *arguments, processes=1):
    """Runs a module of tandem_demo and stops everything if it fails."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), *RENDEZVOUS] if processes > 1 else []
    command = [*launch, "-m", f"tandem_demo.{name}", *arguments]
    print("$ python3 " + " ".join(command), flush=True)
    subprocess.run([sys.executable, *command], cwd=HERE, check=True)


def train(a):
    module("train", "--vocabulary", a.vocabulary, "--out", path(a, "weights"), *RECIPE, processes=a.cards)


def export(a):
    module("export", "--run", path(a, "weights"), "--out", a.out, "--keep-expanded", path(a, "checkpoint"))


def check(a):
    module("check_transformers", "--vocabulary", a.vocabulary, "--run", path(a, "weights"), "--checkpoint", path(a, "checkpoint"))


def evaluate(a):
    """Starts the server on the checkpoint, asks it everything, and ends it."""
    url = f"http://127.0.0.1:{a.port}"
    server = subprocess.Popen([a.tandem, "serve", path(a, "checkpoint"), "--port", str(a.port), "--served-model-name", "tandem-demo", "--log", "warn"])
    try:
        wait_ready(server, url)
        subprocess.run([sys.executable, os.path.join(HERE, "evaluate.py"), "--url", f"{url}/v1", "--vocabulary", a.vocabulary, "--count", str(a.count),
                        "--sampled", str(a.sampled), "--concurrency", "16", "--out", path(a, "figures.json")], check=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def wait_ready(server, url):
    until = time.time() + START_DEADLINE_S
    while time.time() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/ready", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server was not ready at {url} within {START_DEADLINE_S} s")


STAGES = {stage.__name__: stage for stage in (train, export, check, evaluate)}


def path(a, name):
    return os.path.join(a.work, name)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"), help="the file o200k_base.tiktoken (or O200K_VOCABULARY)")
    p.add_argument("--cards", type=int, default=1, help="GPUs of this machine to train on")
    p.add_argument("--work", default=os.path.join(HERE, "runs"), help="folder for the weights, the expanded checkpoint and figures.json")
    p.add_argument("--out", default=MODEL, help="folder of the compressed checkpoint")
    p.add_argument("--tandem", default=shutil.which("tandem"), help="the program that serves the model for the evaluation")
    p.add_argument("--port", type=int, default=8765)
    p.add_argument("--count", type=int, default=150, help="examples of each task in the evaluation")
    p.add_argument("--sampled", type=int, default=1500, help="answers sampled for well-formedness")
    p.add_argument("--stages", default=",".join(STAGES), help="only these, comma separated")
    a = p.parse_args()
    chosen = a.stages.split(",")
    if unknown := [name for name in chosen if name not in STAGES]:
        p.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if not a.vocabulary:
        p.error("--vocabulary or O200K_VOCABULARY must name o200k_base.tiktoken")
    if "evaluate" in chosen and not a.tandem:
        p.error("the evaluation needs --tandem, the path of the tandem program")
    a.vocabulary, a.work, a.out = (os.path.abspath(name) for name in (a.vocabulary, a.work, a.out))
    for name in chosen:
        STAGES[name](a)


if __name__ == "__main__":
    main()
