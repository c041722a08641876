"""The launches of a decode step, as crates/backend-cuda/src/few.rs makes them: grids, shared memory, bytes."""

from typing import NamedTuple

BLOCKS_EACH = 3  # of a kernel on a multiprocessor at the same time
SUMS = 8 * 16 * 8 * 4  # bytes of a block's sums: warps x rows x tokens x 4
STAGED_ROWS_MIN = 3
SPLITS_MAX = 32
DRAW_CHUNKS = 64
ROUTER_PARTS = 4
Q8_TILE, MXFP4_TILE, BF16_TILE = 512 + 32, 512 + 32, 1024
KV_BYTES = 2 * 64 * 2  # keys and values of a head, BF16


class Model(NamedTuple):
    layers: int
    experts: int
    hidden: int = 2880
    units: int = 2880
    heads: int = 64
    kv_heads: int = 8
    window: int = 128
    vocab: int = 201088


MODELS = {"20b": Model(24, 32), "120b": Model(36, 128)}


class Launch(NamedTuple):
    name: str
    grid: tuple
    shared: int
    piece_bytes: int  # what a block reads at a time
    pieces: int  # of the matrix, or of one expert
    input_bytes: int  # of activations, in every block
    early: bool = True  # its weights' place is known before the launch before it ends
    chosen: bool = False  # of chosen experts


def step(model, rows, depth, processors):
    """All launches of a step of `rows` sequences, each `depth` positions in."""
    most = BLOCKS_EACH * processors
    hidden, q = model.hidden, model.heads * 64
    qkv = q + 2 * model.kv_heads * 64
    staged = rows >= STAGED_ROWS_MIN

    def dense(name, out, k):
        tiles, bytes_each = -(-out // 16), -(-k // 32) * Q8_TILE
        at_once = 8 if tiles >= 2048 else 1
        works = -(-tiles // at_once)
        shared = 2 * SUMS + rows * stride(k)
        return Launch(name, (min(works, most), 1, 1), shared, at_once * bytes_each, works, inputs(k))

    def inputs(k, parts=1):
        return rows * parts * stride(k) if staged else rows * k * 4

    def stage(k):
        return [Launch("staging", (rows, 1, 1), 0, 0, 0, k * 4)] if staged else []

    def attention(layer):
        sliding = layer % 2 == 0
        seen = min(depth, model.window) if sliding else depth
        splits = 1 if sliding else max(1, min(SPLITS_MAX, most // (rows * model.kv_heads)))
        piece = -(-seen * KV_BYTES // splits // 16) * 16
        name = "attention, sliding" if sliding else "attention, full"
        return Launch(name, (splits, model.kv_heads, rows), 0, piece, splits * model.kv_heads * rows, 8 * 64 * 4, early=False)

    def router():
        tiles, parts = -(-model.experts // 16), min(ROUTER_PARTS, hidden // 32)
        piece = hidden // 32 * BF16_TILE // parts
        return Launch("norm, router", (tiles, parts, 1), SUMS + rows * 2 * stride(hidden), piece, tiles * parts, inputs(hidden, 2))

    def experts():
        k_tiles = -(-hidden // 64)
        works = min(rows * 4, model.experts) * (model.units // 8) // 2
        up = Launch("gate-up, SwiGLU", (min(works, most), 1, 1), 2 * SUMS + rows * stride(hidden), 2 * k_tiles * MXFP4_TILE,
                    model.units // 16, inputs(hidden), early=False, chosen=True)
        tiles = hidden // 16
        down = Launch("down, sum", (tiles, 2, 1), 0, -(-model.units // 64) * MXFP4_TILE, tiles, 2 * rows * model.units * 2, chosen=True)
        return [*stage(hidden), up, down]

    launches = []
    for layer in range(model.layers):
        launches += [*stage(hidden), dense("norm, qkv", qkv, hidden), attention(layer), *stage(q), dense("o_proj, sum", hidden, q),
                     *stage(hidden), router(), *experts()]
    logits = model.vocab * 4
    draw = Launch("draw", (DRAW_CHUNKS, rows, 1), 0, -(-logits // DRAW_CHUNKS // 16) * 16, DRAW_CHUNKS * rows, 0, early=False)
    return [*launches, *stage(hidden), dense("norm, lm_head", model.vocab, hidden), draw]


def stride(k):
    """Bytes of a staged token, as `staged_stride` in decode.cuh."""
    return k * 2 if k * 2 % 128 == 64 else k * 2 + 64
