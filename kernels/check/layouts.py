"""Weights in the kernels' fragment order, from natural [rows, cols] tensors (torch, any device).

A tile is 16 rows; lane = 4 * g + t. Fragment register a_i is row g + 8 * (i % 2) and register pair r = i // 2; within 32
columns, k = t * 8 + j * 4 + r * 2 + h for k16 step j and half h.
"""

import torch

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def padded(x, rows, cols, value=0):
    """x [..., R, C] with R and C rounded up to multiples."""
    r, c = -x.shape[-2] % rows, -x.shape[-1] % cols
    return torch.nn.functional.pad(x, (0, c, 0, r), value=value) if r or c else x


def gate_up_order(units, device):
    """Checkpoint row of each physical row: gates of eight units, then their ups."""
    unit = torch.arange(units, device=device).view(-1, 8)
    return torch.stack([2 * unit, 2 * unit + 1], 1).flatten()


def place_mxfp4(code, i, together):
    """Where the code of register i stands in a half of a word, as include/mxfp4.cuh has it: nibbles together, as on a GB10,
    or sign and magnitude apart."""
    if together:
        return code << (12 - 4 * i)
    return (code >> 3) << (15, 12, 14, 13)[i] | (code & 7) << (9 - 3 * i)


def pack_mxfp4(codes, scales, together):
    """codes u8 [E, R, K] (one nibble each), scales u8 [E, R, K / 32] -> (tiles, scales, row_base), u8."""
    codes, experts = padded(codes, 16, 64), codes.shape[0]
    base = torch.nn.functional.pad(scales.amax(-1), (0, -scales.shape[1] % 16), value=127).contiguous()
    scales = padded(scales, 16, 2, value=127)
    rows, cols = codes.shape[1:]
    #                    E        RT          rh g  KT         grp t  j  r  h
    view = codes.view(experts, rows // 16, 2, 8, cols // 64, 2, 4, 2, 2, 2).to(torch.int64)
    words = torch.zeros_like(view[:, :, 0, :, :, :, :, :, 0, 0])
    for rh in range(2):
        for r in range(2):
            for h in range(2):
                words |= place_mxfp4(view[:, :, rh, :, :, :, :, :, r, h], r * 2 + rh, together) << (16 * h)
    words = words.permute(0, 1, 3, 2, 5, 4, 6).contiguous()  # E RT KT g t grp j
    tiles = torch.stack([(words >> s) & 255 for s in (0, 8, 16, 24)], -1).to(torch.uint8).flatten()
    order = scales.view(experts, rows // 16, 2, 8, cols // 64, 2).permute(0, 1, 4, 3, 2, 5)
    return tiles, order.contiguous().flatten(), base.flatten()


def mxfp4_values(codes, scales):
    table = torch.tensor(VALUES, dtype=torch.float64, device=codes.device)
    return table[codes.long()] * torch.exp2(scales.double() - 127).repeat_interleave(32, -1)


def pack_q8(q, scales):
    """q i8 [R, K], scales bf16 [R, K / 32] -> (tiles u8, scales bf16, row_base f32)."""
    q = padded(q.to(torch.int16) + 128, 16, 32, value=128).to(torch.uint8)
    scales = padded(scales, 16, 1)
    rows, cols = q.shape
    tiles = q.view(rows // 16, 2, 8, cols // 32, 4, 2, 2, 2).permute(0, 3, 2, 4, 5, 6, 1, 7)
    base = torch.exp2(torch.ceil(torch.log2(scales.float().amax(-1).clamp_min(1e-30))))
    order = scales.view(rows // 16, 16, cols // 32).permute(0, 2, 1)
    return tiles.contiguous().flatten(), order.contiguous().flatten(), base


def pack_bf16(w):
    """w bf16 [R, K] -> tiles."""
    w = padded(w, 16, 32)
    rows, cols = w.shape
    return w.view(rows // 16, 2, 8, cols // 32, 4, 2, 2, 2).permute(0, 3, 5, 2, 4, 6, 1, 7).contiguous().flatten()


def permuted(x):
    """[..., K] in the order within each 32 that the wide product reads its activations in."""
    return x.view(*x.shape[:-1], -1, 4, 2, 2, 2).permute(*range(x.dim()), -3, -2, -4, -1).reshape(x.shape).contiguous()


def natural(x):
    """The inverse of `permuted`."""
    return x.view(*x.shape[:-1], -1, 2, 2, 4, 2).permute(*range(x.dim()), -2, -4, -3, -1).reshape(x.shape).contiguous()


def fp8_values(x, scales, cols):
    """float64 of MXFP8 activations: e4m3 bytes [..., K], each four in the order k + 2, k, k + 3, k + 1; E8M0 scales."""
    x = x.view(*x.shape[:-1], -1, 4)[..., [1, 3, 0, 2]].reshape(x.shape)
    scale = torch.exp2(scales[..., : cols // 32].double() - 127).repeat_interleave(32, -1)
    return x.contiguous().view(torch.float8_e4m3fn).double() * scale


def scale_columns(cols):
    return (cols + 127) // 128 * 4
