"""Times every kernel of a step by Nsight Compute, beside what it reads and what the card at hand can do.

usage: python3 profile_kernels.py TANDEM [20b] [120b] [--keep FOLDER]       (needs ncu, a driver, and torch for the card's arithmetic)
       python3 profile_kernels.py --from FOLDER --reads GB/S --products TFLOP/S

Runs `TANDEM bench` with launches one by one and profiles one step of decoding with 1 and with 8 streams and the first layers of
a prompt of 8,192 tokens: medians of times, bytes to and from memory as counted, FLOP from shapes. Caches are not cleared and
clocks are left alone. The last column is the larger of the shares of what the card reads (the bench's own probe) and multiplies
(a large BF16 product of torch). `--keep` leaves what ncu wrote in a folder, `--from` reads it again.
"""

import argparse
import csv
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

from skeleton_step import MODELS

METRICS = ("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum")
DECODE = "stage_rows|linear_decode_.*|route_decode|moe_(gate_up|down)_decode|attention_decode|draw_tokens"
PREFILL = "rms_norm|narrow_rows|rope_store|attention_prefill|dense_.*_wide|mxfp4_moe_.*_wide|moe_group|moe_combine|choose_experts"
PROMPT, SHORT = 8192, 160  # a prompt in the wide kernels; one whose router is not among those that decode
SINGLES = 4  # tokens that the self-test computes one by one
TOP_K = 4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tandem", nargs="?")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--from", dest="old", type=pathlib.Path)
    parser.add_argument("--reads", type=float)
    parser.add_argument("--products", type=float)
    asked = parser.parse_args()
    if asked.old:
        for run in RUNS:
            if run.file(asked.old).exists():
                show(run, asked.old, asked.reads, asked.products)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = asked.keep or pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        products = asked.products or measured_tflops()
        failed = False
        for run in (run for run in RUNS if run.model in asked.models):
            try:
                reads = profile(run, asked.tandem, folder)
                show(run, folder, asked.reads or reads, products)
            except (LookupError, ValueError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"\n{run.title()}: {error}; what ncu wrote: {run.file(folder)}", flush=True)
                failed = True
    sys.exit(failed)


class Run(NamedTuple):
    """A bench, and which of its launches are looked at."""

    model: str
    rows: int

    def prefill(self):
        return self.rows == PROMPT

    def title(self):
        return f"{self.model}, " + (f"a prompt of {PROMPT} tokens" if self.prefill() else f"decoding, {self.rows} stream(s)")

    def file(self, folder):
        return folder / f"{self.model}-{self.rows}.csv"

    def bench(self):
        if self.prefill():
            return ["--prompt-tokens", PROMPT, "--prefill-chunk", PROMPT, "--output-tokens", 2]
        return ["--prompt-tokens", SHORT, "--output-tokens", 12, "--streams", self.rows]

    def launches(self):
        """Which launches, how many of them to pass over, those of the self-test, and how many to look at."""
        layers = MODELS[self.model].layers
        if self.prefill():
            return PREFILL, 7 * layers, 16 * 4
        of_layer = 6 if self.rows < 3 else 10
        return DECODE, 2 * layers + SINGLES * (6 * layers + 1) - 10, (of_layer + 6) * layers + 40


RUNS = [Run(model, rows) for model in MODELS for rows in (1, 8, PROMPT)]


def profile(run, tandem, folder):
    """Leaves ncu's file; gives GB/s that the card reads."""
    names, skip, count = run.launches()
    command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--log-file", run.file(folder), "--force-overwrite",
               "--clock-control", "none", "--cache-control", "none", "--metrics", ",".join(METRICS),
               "--kernel-name", f"regex:^({names})", "--launch-skip", skip, "--launch-count", count,
               tandem, "bench", "--device", "cuda", "--eager", "--synthetic", run.model, "--warm-up", 0, "--runs", 1, *run.bench()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)
    reads = re.search(r"this machine reads\s+([\d.]+) GB/s", done.stdout)
    if done.returncode or not reads:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(reads[1])


def measured_tflops():
    """Of a product of 8,192 x 8,192 x 8,192 BF16 values by torch, the best of several."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return 2 * 8192**3 / min(times) / 1e12


# ---- from ncu's file to a table ----


class Launch(NamedTuple):
    kernel: str
    grid: tuple
    us: float
    megabytes: float


def show(run, folder, reads, products):
    launches = named(run, trimmed(run, read(run.file(folder))))
    print(f"\n{run.title()} (the card reads {reads:.0f} GB/s and multiplies at {products:.0f} TFLOP/s)")
    print(f"{'':30}{'grid':>14}{'launches':>9}{'µs':>9}{'MB':>9}{'GB/s':>8}{'TFLOP/s':>9}{'share':>7}")
    for name in dict.fromkeys(name for name, _ in launches):
        some = [launch for its, launch in launches if its == name]
        us, megabytes = (statistics.median(values) for values in zip(*((launch.us, launch.megabytes) for launch in some)))
        rate, flop = megabytes / us * 1e3, gflop(run, name)
        tflops = flop / us * 1e3 if flop else None
        share = max(rate / reads, (tflops or 0) / products)
        grid = "x".join(map(str, some[0].grid))
        print(f"{name:30}{grid:>14}{len(some):>9}{us:>9.1f}{megabytes:>9.2f}{rate:>8.0f}"
              f"{f'{tflops:.0f}' if tflops else '':>9}{share:>7.0%}", flush=True)


def read(path):
    """The launches in ncu's raw page: a line of names, one of units, one for each launch."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    head, _, *rows = csv.reader(lines)
    column = {name: head.index(name) for name in ("Kernel Name", "Grid Size", *METRICS)}
    for row in rows:
        time, *memory = (float(row[column[name]].replace(",", "")) for name in METRICS)
        grid = tuple(map(int, re.findall(r"\d+", row[column["Grid Size"]])))
        yield Launch(row[column["Kernel Name"]].split("(")[0], grid, time / 1e3, sum(memory) / 1e6)


def trimmed(run, launches):
    """From the first layer of the step on: what comes before is the self-test's, or of fewer streams. Of several streams one may
    already have ended, so the step is the one with the most."""
    launches = list(launches)
    if run.prefill():
        starts = [i for i, launch in enumerate(launches) if launch.kernel == "rms_norm_rows" and launch.grid[0] == run.rows]
    else:
        attentions = {i: launch.grid[2] for i, launch in enumerate(launches) if launch.kernel.startswith("attention_decode")}
        most = max(attentions.values(), default=0)
        starts = [i for i, rows in attentions.items() if rows == most and (most > 1 or run.rows == 1)]
    if not starts:
        raise LookupError(f"no step of {run.rows} rows among {len(launches)} launches")
    return launches[starts[0]:]


def named(run, launches):
    """Each launch with what it does, which for products of many rows follows from the launch before."""
    out, before, attentions = [], "", 0
    for launch in launches:
        kernel = launch.kernel
        if kernel.startswith("attention_prefill"):
            name = ("attention, sliding", "attention, full")[attentions % 2]  # a model begins with a sliding layer
            attentions += 1
        elif kernel.startswith("attention_decode"):
            name = "attention, sliding" if launch.grid[0] == 1 else "attention, full"
        elif kernel.startswith("linear_decode"):
            name = "lm_head" if kernel.endswith("_many") else "qkv" if launch.grid[0] > 180 else "o_proj, sum"
        elif kernel.startswith("dense_bf16"):
            name = "router's product"
        elif kernel.startswith("dense"):
            name = "qkv" if before == "rms_norm_rows" else "o_proj, sum"
        else:
            name = PLAIN.get(re.sub("_wide$|_fp8$", "", kernel), kernel)
        before = kernel
        out.append((name, launch))
    return out


PLAIN = {
    "stage_rows": "staging", "route_decode": "norm, router", "moe_gate_up_decode": "gate-up, SwiGLU", "moe_down_decode": "down, sum",
    "draw_tokens": "draw", "rms_norm_rows": "norm", "rms_norm": "norm, f32", "narrow_rows": "narrow", "rope_store": "rotation, storing",
    "mxfp4_moe_gate_up": "gate-up, SwiGLU", "mxfp4_moe_down": "down", "moe_group": "rows by expert", "moe_combine": "weighted sum",
    "choose_experts": "choice of experts",
}


def gflop(run, name):
    """Of a launch for many rows; decoding is bound by reading."""
    if not run.prefill():
        return None
    model, n = MODELS[run.model], run.rows
    q = model.heads * 64
    multiplications = {
        "qkv": n * model.hidden * (q + 2 * model.kv_heads * 64),
        "o_proj, sum": n * model.hidden * q,
        "router's product": n * model.hidden * model.experts,
        "gate-up, SwiGLU": n * TOP_K * model.hidden * 2 * model.units,
        "down": n * TOP_K * model.hidden * model.units,
        "attention, full": 2 * q * n * (n + 1) / 2,
        "attention, sliding": 2 * q * (n * model.window - model.window * (model.window - 1) / 2),
    }
    return 2 * multiplications[name] / 1e9 if name in multiplications else None


if __name__ == "__main__":
    main()
