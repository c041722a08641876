"""Checks the kernels for many rows against float64 torch on the GPU at hand. Exit code 1 if any is off.

usage: python3 check_prefill.py        (needs torch, CuPy and NVRTC 13)
"""

import math
import sys

import torch

from launch import Kernels, tile_rows
import layouts

DEVICE = "cuda"
FAILED = []
COUNT = {}
WORST = {}
# ||out - ref|| / ||ref||. f16 weights and one rounding of z: 2^-11 a term; bf16 P and outputs: 2^-9; e4m3 outputs: 2^-4.
TOLERANCE = {"gate_up": 1e-3, "down": 1e-3, "combine": 1e-6, "dense_q8": 1e-3, "dense_mxfp4": 1e-3, "dense_bf16": 1e-5,
             "attention": 4e-3, "rope": 3e-3, "rms_norm f16": 5e-4, "rms_norm bf16": 3e-3,
             "gate_up fp8": 4e-2, "down fp8": 1e-5, "narrow fp8": 4e-2}


def report(kernel, case, out, ref):
    ref = ref.double()
    error = ((out.double() - ref).norm() / ref.norm().clamp_min(1e-30)).item()
    good = error <= TOLERANCE[kernel]  # false for NaN
    WORST[kernel] = max(WORST.get(kernel, 0.0), error if error == error else math.inf)
    COUNT[kernel] = COUNT.get(kernel, 0) + 1
    if not good:
        FAILED.append(f"{kernel} {case}: {error:.3g} > {TOLERANCE[kernel]:g}")


def poison(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def random_mxfp4(experts, rows, cols, low=118, high=124):
    codes = torch.randint(0, 16, (experts, rows, cols), device=DEVICE, dtype=torch.uint8)
    return codes, torch.randint(low, high, (experts, rows, cols // 32), device=DEVICE, dtype=torch.uint8)


def group(k, ids, experts, rows):
    pairs = ids.numel()
    offsets = torch.full((experts + 1,), -1, dtype=torch.int32, device=DEVICE)
    order = torch.full((pairs,), -1, dtype=torch.int32, device=DEVICE)
    tiles = torch.full((experts + pairs // rows + 1, 4), -1, dtype=torch.int32, device=DEVICE)
    n_tiles = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    k("moe_group", experts, 256, 4 * experts, ids, offsets, order, tiles, n_tiles, pairs, 0, experts, rows)
    return offsets, order, tiles, n_tiles


def check_group(k, ids, experts, rows):
    offsets, order, tiles, n_tiles = (x.cpu() for x in group(k, ids, experts, rows))
    flat = ids.flatten().cpu()
    lists = [(flat == e).nonzero().flatten().int() for e in range(experts)]
    want_tiles, want_offsets, place = [], [0], 0
    for e, pairs in enumerate(lists):
        want_tiles += [[e, place + i, min(rows, len(pairs) - i), 0] for i in range(0, len(pairs), rows)]
        place += len(pairs)
        want_offsets.append(place)
    good = offsets.tolist() == want_offsets and torch.equal(order[:place], torch.cat(lists)) and n_tiles.item() == len(want_tiles)
    COUNT["moe_group"] = COUNT.get("moe_group", 0) + 1
    WORST.setdefault("moe_group", 0.0)
    if not good or tiles[: len(want_tiles)].tolist() != want_tiles:
        FAILED.append(f"moe_group rows {ids.shape[0]} experts {experts} tile {rows}")


def routes(n, experts, top_k=4, kind="random"):
    if kind == "one":  # every row's first choice is the same expert
        ids = torch.arange(top_k, device=DEVICE).repeat(n, 1)
    else:
        ids = torch.rand(n, experts, device=DEVICE).topk(top_k, 1).indices
    return ids.int().contiguous()


def swiglu(h, limit=7.0, alpha=1.702):
    gate, up = h[..., ::2].clamp(max=limit), h[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def check_experts(k, hidden, units, experts, n, kind="random", top_k=4, scales=(118, 124)):
    up_codes, up_scales = random_mxfp4(experts, 2 * units, hidden, *scales)
    down_codes, down_scales = random_mxfp4(experts, hidden, units, *scales)
    b1 = torch.randn(experts, 2 * units, device=DEVICE) * 4  # far enough to pass both limits
    b2 = torch.randn(experts, hidden, device=DEVICE)
    order = layouts.gate_up_order(units, DEVICE)
    up = layouts.pack_mxfp4(up_codes[:, order].contiguous(), up_scales[:, order].contiguous(), k.gb10)
    down = layouts.pack_mxfp4(down_codes, down_scales, k.gb10)
    w1, w2 = layouts.mxfp4_values(up_codes, up_scales), layouts.mxfp4_values(down_codes, down_scales)
    x = torch.randn(n, hidden, device=DEVICE).half()
    ids, routing = routes(n, experts, top_k, kind), torch.rand(n, top_k, device=DEVICE)
    residual = torch.randn(n, hidden, device=DEVICE)
    flat = ids.flatten().long()
    z_ref = torch.empty(n * top_k, units, dtype=torch.float64, device=DEVICE)
    y_ref = torch.empty(n * top_k, hidden, dtype=torch.float64, device=DEVICE)
    for e in flat.unique().tolist():
        pairs = (flat == e).nonzero().flatten()
        z_ref[pairs] = swiglu(x[pairs // top_k].double() @ w1[e].T + b1[e].double())
    for tile in k.tiles():
        case = f"{hidden}/{units} experts {experts} rows {n} {kind} tile {tile}"
        order = layouts.permuted if tile == "wide" else lambda v: v
        _, pairs, tiles, n_tiles = group(k, ids, experts, tile_rows(tile))
        z, y = poison(n * top_k, units, dtype=torch.float16), poison(n * top_k, hidden)
        k.persistent("mxfp4_moe_gate_up", tile, *up, b1, order(x), z, tiles, n_tiles, pairs, 2 * units, hidden, top_k, 7.0, 1.702)
        report("gate_up", case, z, order(z_ref[pairs.long()]))
        k.persistent("mxfp4_moe_down", tile, *down, b2, z, y, tiles, n_tiles, pairs, hidden, units)
        for e in flat.unique().tolist():
            at = (flat[pairs.long()] == e).nonzero().flatten()
            y_ref[pairs[at].long()] = (layouts.natural(z) if tile == "wide" else z)[at].double() @ w2[e].T + b2[e].double()
        report("down", case, y, y_ref)
        summed = residual.clone()
        k("moe_combine", n, 128, 0, y, ids, routing, summed, hidden, top_k, 0, experts)
        report("combine", case, summed, residual.double() + (routing.double()[..., None] * y.double().view(n, top_k, hidden)).sum(1))


def check_experts_fp8(k, hidden, units, experts, n, top_k=4):
    up_codes, up_scales = random_mxfp4(experts, 2 * units, hidden)
    down_codes, down_scales = random_mxfp4(experts, hidden, units)
    b1, b2 = torch.randn(experts, 2 * units, device=DEVICE), torch.randn(experts, hidden, device=DEVICE)
    order = layouts.gate_up_order(units, DEVICE)
    up = layouts.pack_mxfp4(up_codes[:, order].contiguous(), up_scales[:, order].contiguous(), k.gb10)
    down = layouts.pack_mxfp4(down_codes, down_scales, k.gb10)
    w1, w2 = layouts.mxfp4_values(up_codes, up_scales), layouts.mxfp4_values(down_codes, down_scales)
    raw = torch.randn(n, hidden, device=DEVICE) * torch.exp2(torch.randint(-8, 8, (n, 1), device=DEVICE).float())
    x = torch.full((n, hidden), 0x7F, dtype=torch.uint8, device=DEVICE)  # NaN
    x_scales = torch.full((n, layouts.scale_columns(hidden)), 255, dtype=torch.uint8, device=DEVICE)
    k("narrow_rows_fp8", n, 256, 0, raw, x, x_scales, hidden)
    values = layouts.fp8_values(x, x_scales, hidden)
    report("narrow fp8", f"{n}x{hidden}", values, raw)
    ids = routes(n, experts, top_k)
    flat = ids.flatten().long()
    for tile in k.fp8_tiles():
        case = f"{hidden}/{units} experts {experts} rows {n} tile {tile}"
        _, pairs, tiles, n_tiles = group(k, ids, experts, tile_rows(tile))
        z = torch.full((n * top_k, units), 0x7F, dtype=torch.uint8, device=DEVICE)
        z_scales = torch.full((n * top_k, layouts.scale_columns(units)), 255, dtype=torch.uint8, device=DEVICE)
        y = poison(n * top_k, hidden)
        k.persistent("mxfp4_moe_gate_up", tile, *up, b1, x, x_scales, z, z_scales, tiles, n_tiles, pairs, 2 * units, hidden, top_k, 7.0, 1.702)
        k.persistent("mxfp4_moe_down", tile, *down, b2, z, z_scales, y, tiles, n_tiles, pairs, hidden, units)
        z_values = layouts.fp8_values(z, z_scales, units)
        z_ref, y_ref = torch.empty_like(z_values), torch.empty(n * top_k, hidden, dtype=torch.float64, device=DEVICE)
        for e in flat.unique().tolist():
            at = (flat[pairs.long()] == e).nonzero().flatten()
            mine = pairs[at].long()
            z_ref[at] = swiglu(values[mine // top_k] @ w1[e].T + b1[e].double())
            y_ref[mine] = z_values[at] @ w2[e].T + b2[e].double()
        report("gate_up fp8", case, z_values, z_ref)
        report("down fp8", case, y, y_ref)


def dense_weights(k, kind, rows, cols):
    """(weights, scales, bases) in fragment order, and the float64 matrix."""
    if kind == "mxfp4":
        codes, scales = random_mxfp4(1, rows, cols, 112, 124)
        return layouts.pack_mxfp4(codes, scales, k.gb10), layouts.mxfp4_values(codes, scales)[0]
    if kind == "bf16":
        w = (torch.randn(rows, cols, device=DEVICE) / cols**0.5).bfloat16()
        return (layouts.pack_bf16(w), None, None), w.double()
    q = torch.randint(-127, 128, (rows, cols), device=DEVICE, dtype=torch.int8)
    scales = (torch.rand(rows, cols // 32, device=DEVICE) * 1e-3 + 1e-5).bfloat16()
    return layouts.pack_q8(q, scales), q.double() * scales.double().repeat_interleave(32, -1)


def check_dense(k, kind, rows, cols, n):
    packed, w = dense_weights(k, kind, rows, cols)
    bias = torch.randn(rows, device=DEVICE)
    x = torch.randn(n, cols, device=DEVICE).to(torch.bfloat16 if kind == "bf16" else torch.float16)
    ref = x.double() @ w.T
    for tile in k.tiles():
        for accumulate in (0, 1):
            out = torch.randn(n, rows, device=DEVICE) if accumulate else poison(n, rows)
            want = ref + (out.double() if accumulate else bias.double())
            input = layouts.permuted(x) if tile == "wide" else x
            k.persistent(f"dense_{kind}", tile, *packed, None if accumulate else bias, input, out, n, rows, cols, accumulate)
            report(f"dense_{kind}", f"{rows}x{cols} rows {n} tile {tile} accumulate {accumulate}", out, want)


class Paged:
    """Sequences with (rows, first position) and a pool whose blocks are in random order; other slots are NaN."""

    def __init__(self, sequences, kv_heads, layers=2, layer=1):
        self.rows, self.first = [r for r, _ in sequences], [p for _, p in sequences]
        lengths = [r + p for r, p in sequences]
        self.stride = max(math.ceil(length / 16) for length in lengths) + 1
        blocks = sum(math.ceil(length / 16) for length in lengths) + 3
        free = torch.randperm(blocks).tolist()
        self.tables = torch.zeros(len(sequences), self.stride, dtype=torch.int32)
        for s, length in enumerate(lengths):
            self.tables[s, : math.ceil(length / 16)] = torch.tensor([free.pop() for _ in range(math.ceil(length / 16))])
        self.tables, self.layers, self.layer, self.kv_heads = self.tables.to(DEVICE), layers, layer, kv_heads
        self.pool = poison(blocks, layers, kv_heads, 2, 16, 64, dtype=torch.bfloat16)
        self.starts = torch.tensor([0, *self.rows], device=DEVICE).cumsum(0).int()
        self.positions = torch.tensor(self.first, dtype=torch.int32, device=DEVICE)
        self.lengths = lengths

    def slots(self, s, positions):
        return self.tables[s, positions // 16].long(), positions % 16

    def fill(self):
        for s, length in enumerate(self.lengths):
            block, slot = self.slots(s, torch.arange(length, device=DEVICE))
            self.pool[block, self.layer, :, :, slot] = torch.randn(length, self.kv_heads, 2, 64, device=DEVICE).bfloat16()

    def keys_values(self, s):
        block, slot = self.slots(s, torch.arange(self.lengths[s], device=DEVICE))
        both = self.pool[block, self.layer, :, :, slot].double()  # [T, kv, 2, 64]
        return both[:, :, 0], both[:, :, 1]

    def arguments(self):
        return self.tables, self.stride, self.starts, self.positions, len(self.rows)


def attention_reference(q, paged, sinks, window):
    heads, kv_heads = q.shape[1], paged.kv_heads
    out = torch.empty(q.shape, dtype=torch.float64, device=DEVICE)
    for s, (rows, first) in enumerate(zip(paged.rows, paged.first)):
        begin = int(paged.starts[s])
        keys, values = (x.repeat_interleave(heads // kv_heads, 1) for x in paged.keys_values(s))
        score = torch.einsum("qhd,khd->hqk", q[begin : begin + rows].double(), keys) / 8
        at, key = first + torch.arange(rows, device=DEVICE)[:, None], torch.arange(keys.shape[0], device=DEVICE)[None]
        score.masked_fill_((key > at) | ((key <= at - window) if window else False), -math.inf)
        if sinks is not None:
            score = torch.cat([score, sinks.double()[:, None, None].expand(heads, rows, 1)], -1)
        p = score.softmax(-1)[..., : keys.shape[0]]
        out[begin : begin + rows] = torch.einsum("hqk,khd->qhd", p, values)
    return out


def check_attention(k, sequences, heads, kv_heads, window, with_sinks=True, q_f32=0, out_format=0, permuted=0):
    paged = Paged(sequences, kv_heads)
    paged.fill()
    n, length = sum(paged.rows), 128 // (heads // kv_heads)
    q = (torch.randn(n, heads, 64, device=DEVICE) * 2).bfloat16()
    sinks = torch.randn(heads, device=DEVICE) * 3 if with_sinks else None
    out = poison(n, heads, 64, dtype=(torch.float16, torch.bfloat16, torch.float32)[out_format])
    runs = sum(math.ceil(r / length) for r in paged.rows) + 1
    k("attention_prefill", (runs, kv_heads), 128, 49152, q.float() if q_f32 else q, q_f32, heads * 64, paged.pool, 2, 1, kv_heads, heads,
      *paged.arguments(), sinks, out, out_format, permuted, window, 0.125)
    out = layouts.natural(out) if permuted else out
    report("attention", f"{sequences} heads {heads}/{kv_heads} window {window} sinks {with_sinks}", out, attention_reference(q, paged, sinks, window))


def check_rope(k, sequences, heads, kv_heads, in_place):
    paged = Paged(sequences, kv_heads)
    n = sum(paged.rows)
    inverse = 150000 ** -(torch.arange(32, device=DEVICE).double() / 32)
    inverse = inverse.float()
    position = torch.cat([first + torch.arange(rows, device=DEVICE) for rows, first in sequences])
    angle = (position.float()[:, None] * inverse).double()
    cos, sin = angle.cos()[:, None] * 1.3465735902799727, angle.sin()[:, None] * 1.3465735902799727
    qkv = torch.randn(n, heads + 2 * kv_heads, 64, device=DEVICE)
    low, high = qkv[:, : heads + kv_heads, :32].double(), qkv[:, : heads + kv_heads, 32:].double()
    rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
    values = qkv[:, heads + kv_heads :].clone()
    q = poison(n, heads, 64, dtype=torch.bfloat16)
    k("rope_store", n, 256, 0, qkv, None if in_place else q, paged.pool, 2, 1, kv_heads, heads, *paged.arguments(), inverse, 1.3465735902799727)
    sequence = torch.repeat_interleave(torch.arange(len(sequences), device=DEVICE), torch.tensor(paged.rows, device=DEVICE))
    block = paged.tables[sequence, position // 16].long()
    stored = paged.pool[block, 1, :, :, position % 16]  # [n, kv, 2, 64]
    report("rope", f"{sequences} q", qkv[:, :heads] if in_place else q, rotated[:, :heads])
    report("rope", f"{sequences} k", stored[:, :, 0], rotated[:, heads:])
    report("rope", f"{sequences} v", stored[:, :, 1], values)


def check_norm(k, n, cols, form, permuted):
    x, w = torch.randn(n, cols, device=DEVICE) * 3, torch.rand(cols, device=DEVICE) + 0.5
    y = poison(n, cols, dtype=(torch.float16, torch.bfloat16)[form])
    k("rms_norm_rows", n, 256, 0, x, w, y, cols, 1e-5, form, permuted)
    ref = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5) * w.double()
    report(f"rms_norm {('f16', 'bf16')[form]}", f"{n}x{cols}", layouts.natural(y) if permuted else y, ref)


def check_all(k):
    for n, experts, kind in ((1, 8, ""), (9, 128, ""), (64, 32, "one"), (1000, 128, ""), (8192, 128, ""), (4096, 8, "one")):
        for rows in (16, 256):
            check_group(k, routes(n, experts, kind=kind), experts, rows)
    outside = routes(100, 8)
    outside[::3, 1] = -1
    outside[::5, 2] = 8
    check_group(k, outside, 8, 16)
    for hidden, units, experts, n, kind in ((256, 192, 8, 1, ""), (256, 192, 8, 37, ""), (320, 160, 16, 150, ""), (320, 160, 8, 300, "one"),
                                            (2880, 2880, 8, 40, ""), (2880, 2880, 8, 700, ""), (2880, 1440, 8, 130, "")):
        check_experts(k, hidden, units, experts, n, kind)
    check_experts(k, 320, 160, 8, 50, top_k=2, scales=(100, 128))
    for hidden, units, experts, n in ((256, 192, 8, 37), (320, 160, 8, 150), (2880, 2880, 8, 300), (2880, 1440, 8, 70)):
        check_experts_fp8(k, hidden, units, experts, n)
    for kind in ("q8", "mxfp4", "bf16"):
        for rows, cols, n in ((64, 32, 1), (200, 160, 33), (40, 320, 70), (37, 64, 50), (5120, 2880, 200), (2880, 4096, 129), (1000, 1440, 17)):
            check_dense(k, kind, rows, cols, n)
    ragged = [(1, 0), (5, 124), (40, 127), (1, 500), (130, 0), (17, 1000), (3, 129), (64, 128)]
    for window in (0, 128, 127, 1, 5):
        check_attention(k, ragged, 64, 8, window, permuted=window % 2)
        check_attention(k, ragged, 8, 2, window, with_sinks=window != 0, q_f32=1, out_format=2)
    check_attention(k, [(1, i * 37) for i in range(45)], 32, 4, 0, out_format=1)
    check_attention(k, [(700, 3000)], 64, 8, 128)
    check_attention(k, [(100, 131072 - 100)], 8, 1, 0)
    for in_place in (False, True):
        check_rope(k, [(1, 0), (5, 124), (40, 127), (20, 131072 - 20)], 64, 8, in_place)
        check_rope(k, [(33, 100)], 8, 2, in_place)
    for n, cols in ((1, 256), (7, 320), (100, 2880), (3, 8192)):
        for permuted in (0, 1):
            check_norm(k, n, cols, 0, permuted)
            check_norm(k, n, cols, 1, permuted)
    torch.cuda.synchronize()


def main():
    torch.manual_seed(torch.seed())
    print(torch.cuda.get_device_name(), f"seed {torch.initial_seed()}")
    kernels = Kernels()
    check_all(kernels)
    if not kernels.gb10:
        check_all(Kernels(as_gb10=True))
    for kernel, error in WORST.items():
        print(f"{kernel:16} {COUNT[kernel]:4} cases, worst {error:.2e}, tolerance {TOLERANCE.get(kernel, 0):g}")
    for line in FAILED[:40]:
        print("FAILED", line)
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
