"""Times the kernels for many rows on the GPU at hand, at the shapes of gpt-oss-120b and -20b with random weights.

usage: python3 bench_prefill.py        (needs torch, CuPy and NVRTC 13)
"""

import math

import torch

from check_prefill import Paged, group, routes
import layouts
from launch import TILES, Kernels, tile_rows, time_us

DEVICE = "cuda"
HIDDEN = 2880


def random_bytes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)


def row(name, us, gbytes=None, tflop=None):
    rates = [f"{gbytes / us * 1e6:7.0f} GB/s" if gbytes else " " * 12, f"{tflop / us * 1e6:6.0f} TFLOP/s" if tflop else ""]
    print(f"{name:44} {us:9.1f} us {' '.join(rates)}", flush=True)


def experts(k, count, rows_list, tiles_of):
    tiles_up, tiles_down = HIDDEN * 2 // 16, HIDDEN // 16
    weights = {}
    for name, tiles in (("up", tiles_up), ("down", tiles_down)):
        scales = torch.randint(116, 124, (count * tiles * 45 * 32,), dtype=torch.uint8, device=DEVICE)
        weights[name] = (random_bytes(count * tiles * 45 * 512), scales, torch.full((count * tiles * 16,), 124, dtype=torch.uint8, device=DEVICE))
    b1, b2 = torch.randn(count, 2 * HIDDEN, device=DEVICE), torch.randn(count, HIDDEN, device=DEVICE)
    for n in rows_list:
        x, ids = torch.randn(n, HIDDEN, device=DEVICE).half(), routes(n, count)
        distinct = ids.unique().numel()
        z = torch.empty(n * 4, HIDDEN, dtype=torch.float16, device=DEVICE)
        y = torch.empty(n * 4, HIDDEN, device=DEVICE)
        flop = 2 * n * 4 * HIDDEN * HIDDEN / 1e12
        byte = distinct * HIDDEN * HIDDEN * 17 / 32 / 1e9
        for tile in tiles_of(n, count):
            _, pairs, tiles, n_tiles = group(k, ids, count, tile_rows(tile))
            up = lambda: k.persistent("mxfp4_moe_gate_up", tile, *weights["up"], b1, x, z, tiles, n_tiles, pairs, 2 * HIDDEN, HIDDEN, 4, 7.0, 1.702)
            row(f"gate_up {count} experts, {n} rows, tile {tile}", time_us(up), 2 * byte, 2 * flop)
            down = lambda: k.persistent("mxfp4_moe_down", tile, *weights["down"], b2, z, y, tiles, n_tiles, pairs, HIDDEN, HIDDEN)
            row(f"down    {count} experts, {n} rows, tile {tile}", time_us(down), byte, flop)
        if n >= 2048:
            x8, xs = random_bytes(n, HIDDEN) & 0xF7, torch.full((n, layouts.scale_columns(HIDDEN)), 120, dtype=torch.uint8, device=DEVICE)
            z8, zs = random_bytes(n * 4, HIDDEN) & 0xF7, torch.zeros(n * 4, layouts.scale_columns(HIDDEN), dtype=torch.uint8, device=DEVICE)
            for tile in k.fp8_tiles():
                _, pairs, tiles, n_tiles = group(k, ids, count, tile_rows(tile))
                up = lambda: k.persistent("mxfp4_moe_gate_up", tile, *weights["up"], b1, x8, xs, z8, zs, tiles, n_tiles, pairs, 2 * HIDDEN, HIDDEN, 4, 7.0, 1.702)
                row(f"gate_up {count} experts, {n} rows, {tile}", time_us(up), 2 * byte, 2 * flop)
        routing, residual = torch.rand(n, 4, device=DEVICE), torch.randn(n, HIDDEN, device=DEVICE)
        row(f"combine {n} rows", time_us(lambda: k("moe_combine", n, 128, 0, y, ids, routing, residual, HIDDEN, 4, 0, count)), n * HIDDEN * 24 / 1e9)
        row(f"group   {count} experts, {n} rows", time_us(lambda: group(k, ids, count, 64)))


def dense(k, kind, rows, cols, rows_list, tiles_of):
    tiles = rows // 16
    copies = max(1, math.ceil(2e8 / (rows * cols)))  # more than L2 holds
    size = {"q8": 512, "mxfp4": 256, "bf16": 1024}[kind] * tiles * cols // 32
    sets = []
    for _ in range(copies):
        if kind == "bf16":
            w = (torch.randn(size // 2, device=DEVICE) / 50).bfloat16(), None, None
        elif kind == "q8":
            w = random_bytes(size), (torch.rand(rows * cols // 32, device=DEVICE) * 1e-3).bfloat16(), torch.full((rows,), 2.0**-9, device=DEVICE)
        else:
            w = random_bytes(size), torch.randint(116, 124, (rows * cols // 32,), dtype=torch.uint8, device=DEVICE), torch.full((rows,), 124, dtype=torch.uint8, device=DEVICE)
        sets.append(w)
    byte = {"q8": 34, "mxfp4": 17, "bf16": 64}[kind] / 32 * rows * cols / 1e9
    for n in rows_list:
        x = torch.randn(n, cols, device=DEVICE).to(torch.bfloat16 if kind == "bf16" else torch.float16)
        out, turn = torch.empty(n, rows, device=DEVICE), [0]
        for tile in tiles_of(n):

            def run():
                turn[0] += 1
                k.persistent(f"dense_{kind}", tile, *sets[turn[0] % copies], None, x, out, n, rows, cols, 0)

            row(f"{kind} {rows}x{cols}, {n} rows, tile {tile}", time_us(run), byte, 2 * n * rows * cols / 1e12)


def attention(k, sequences, window, label):
    paged = Paged(sequences, 8, layers=1, layer=0)
    paged.pool.normal_()
    n = sum(paged.rows)
    q, out = torch.randn(n, 64, 64, device=DEVICE).bfloat16(), torch.empty(n, 64, 64, dtype=torch.float16, device=DEVICE)
    sinks = torch.randn(64, device=DEVICE)
    pairs = sum(min(window or math.inf, first + i + 1) for rows, first in sequences for i in range(rows))
    runs = sum(math.ceil(r / 16) for r in paged.rows)
    run = lambda: k("attention_prefill", (runs, 8), 128, 49152, q, 0, 4096, paged.pool, 1, 0, 8, 64, *paged.arguments(), sinks, out, 0, 0, window, 0.125)
    row(f"attention {label}", time_us(run), None, pairs * 64 * 64 * 4 / 1e12)


def small_ones(k, n):
    x, w = torch.randn(n, HIDDEN, device=DEVICE), torch.rand(HIDDEN, device=DEVICE)
    y = torch.empty(n, HIDDEN, dtype=torch.float16, device=DEVICE)
    row(f"rms_norm {n} rows", time_us(lambda: k("rms_norm_rows", n, 256, 0, x, w, y, HIDDEN, 1e-5, 0, 0)), n * HIDDEN * 6 / 1e9)
    paged = Paged([(n, 0)], 8, layers=1, layer=0)
    qkv, q, inverse = torch.randn(n, 80 * 64, device=DEVICE), torch.empty(n, 4096, dtype=torch.bfloat16, device=DEVICE), torch.rand(32, device=DEVICE)
    row(f"rope_store {n} rows", time_us(lambda: k("rope_store", n, 256, 0, qkv, q, paged.pool, 1, 0, 8, 64, *paged.arguments(), inverse, 1.35)), n * 5120 * 6 / 1e9)


def near(rows):
    """The tiles worth trying for so many rows a tile."""
    return [t for t in TILES if rows / 2 <= tile_rows(t) <= max(16, rows * 4)] or [128, "wide"]


def main():
    k = Kernels()
    print(torch.cuda.get_device_name())
    experts(k, 128, (16, 32, 64, 256, 1024, 2048, 8192), lambda n, count: near(n * 4 / count))
    experts(k, 32, (16, 64, 2048, 8192), lambda n, count: near(n * 4 / count))
    for kind in ("q8", "mxfp4", "bf16"):
        dense(k, kind, 5120, 2880, (16, 32, 64, 2048, 8192), near)
        dense(k, kind, 2880, 4096, (16, 32, 64, 8192), near)
    dense(k, "q8", 201088, 2880, (16, 64), near)
    attention(k, [(8192, 0)], 0, "8192 rows from 0, all keys")
    attention(k, [(8192, 0)], 128, "8192 rows from 0, window 128")
    attention(k, [(2048, 30720)], 0, "2048 rows from 30720, all keys")
    attention(k, [(1, 8191)] * 64, 0, "64 sequences of 1 row at 8192")
    attention(k, [(1, 8191)] * 64, 128, "64 sequences of 1 row, window 128")
    small_ones(k, 64)
    small_ones(k, 8192)


if __name__ == "__main__":
    main()
