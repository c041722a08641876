"""The model in torch: gpt-oss as the runtime reads it, with MXFP4 experts quantised in the loop.

Shapes: B rows of T positions, H hidden, L layers, E experts, I intermediate, D head size. Parameters of all layers are stacked in
front, so that the optimizer works on few large tensors.
"""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Shape:
    hidden: int = 256
    intermediate: int = 256
    layers: int = 8
    experts: int = 8
    top_k: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    window: int = 128
    theta: float = 150000.0
    factor: float = 32.0
    original_context: int = 2048
    eps: float = 1e-5
    limit: float = 7.0
    alpha: float = 1.702
    mantissa_bits: int = 4  # explicit mantissa bits kept in embedding and attention matrices (BF16 has 7); fewer compress better

    def as_dict(self):
        return asdict(self)


def mxfp4_codes(weight):
    """Nearest E2M1 values and the E8M0 exponents for groups of 32 along the last axis: (values, exponent), value * 2^exponent."""
    groups = weight.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(2.0 ** -60)
    # The smallest power of two under which the largest magnitude fits into 6.
    exponent = torch.ceil(torch.log2(largest / 6.0))
    scaled = groups * torch.exp2(-exponent)
    magnitude = scaled.abs()
    # Steps of 0.5 up to 2, of 1 up to 4, of 2 up to 6.
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    values = torch.sign(scaled) * (torch.round(magnitude / step) * step).clamp(max=6.0)
    return values, exponent


def mxfp4_round(weight):
    """`weight` as it reads back from MXFP4, with the gradient passed straight through."""
    values, exponent = mxfp4_codes(weight)
    rounded = (values * torch.exp2(exponent)).flatten(-2)
    return weight + (rounded - weight).detach()


def bf16_round(weight, mantissa_bits):
    """`weight` with the mantissa cut to a few bits (round half up in magnitude), exact in BF16; gradient straight through."""
    drop = 23 - mantissa_bits
    bits = weight.detach().float().view(torch.int32)
    rounded = ((bits + (1 << (drop - 1))) & -(1 << drop)).view(torch.float32)
    return weight + (rounded - weight).detach()


def rope_tables(shape, positions):
    """cos and sin [positions, D/2] with YaRN scaling by parts, concentration included."""
    half = shape.head_dim // 2
    j = torch.arange(half, dtype=torch.float64)
    frequency = shape.theta ** (2 * j / shape.head_dim)
    bound = lambda turns: shape.head_dim * math.log(shape.original_context / (turns * 2 * math.pi)) / (2 * math.log(shape.theta))
    low, high = bound(32.0), bound(1.0)
    ramp = ((j - low) / (high - low)).clamp(0, 1)
    inverse = ((1 - ramp) / frequency + ramp / (shape.factor * frequency)).float()
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * inverse[None, :]
    concentration = 0.1 * math.log(shape.factor) + 1
    return torch.cos(angle) * concentration, torch.sin(angle) * concentration


def rotate(x, cos, sin):
    """Half-split rotation of [..., T, D] by tables [T, D/2] (or broadcastable), in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def rms_norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def dense_attention(q, k, v, sinks, mask):
    """q [B, heads, T, D], k and v [B, kv_heads, S, D], mask [B or 1, 1, T, S] of allowed pairs, sinks [heads]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~mask, float("-inf"))
    sink = sinks.float()[None, :, None, None].expand(scores.shape[0], -1, scores.shape[2], 1)
    weights = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
    return (weights @ v.float()).to(q.dtype)


class Tandem(nn.Module):
    """Logits over the compact vocabulary; the rows of all other ids are zero and have logit 0."""

    def __init__(self, shape, rows):
        super().__init__()
        s = self.shape = shape
        self.rows = rows
        L, H, E, I, D = s.layers, s.hidden, s.experts, s.intermediate, s.head_dim
        normal = lambda *size, gain=1.0: nn.Parameter(torch.randn(*size) * gain / math.sqrt(size[-1]))
        out_gain = 1 / math.sqrt(2 * L)
        self.embedding = nn.Parameter(torch.randn(rows, H) * 0.05)
        self.norm_in = nn.Parameter(torch.ones(L, H))
        self.norm_post = nn.Parameter(torch.ones(L, H))
        self.norm_final = nn.Parameter(torch.ones(H))
        self.q, self.q_bias = normal(L, s.heads * D, H), nn.Parameter(torch.zeros(L, s.heads * D))
        self.k, self.k_bias = normal(L, s.kv_heads * D, H), nn.Parameter(torch.zeros(L, s.kv_heads * D))
        self.v, self.v_bias = normal(L, s.kv_heads * D, H), nn.Parameter(torch.zeros(L, s.kv_heads * D))
        self.o, self.o_bias = normal(L, H, s.heads * D, gain=out_gain), nn.Parameter(torch.zeros(L, H))
        self.sinks = nn.Parameter(torch.zeros(L, s.heads))
        self.router, self.router_bias = normal(L, E, H), nn.Parameter(torch.zeros(L, E))
        self.up, self.up_bias = normal(L, E, 2 * I, H), nn.Parameter(torch.zeros(L, E, 2 * I))
        self.down, self.down_bias = normal(L, E, H, I, gain=out_gain), nn.Parameter(torch.zeros(L, E, H))

    MATRICES = ("q", "k", "v", "o", "up", "down")

    def effective(self):
        """The weights as the checkpoint will hold them, in float32 (experts rounded to MXFP4, the rest to BF16)."""
        bits, weights = self.shape.mantissa_bits, {}
        for name, parameter in self.named_parameters():
            if name in ("up", "down"):
                weights[name] = mxfp4_round(parameter)
            else:
                weights[name] = bf16_round(parameter, bits if name in ("embedding", "q", "k", "v", "o") else 7)
        return weights

    def forward(self, ids, attend, dtype=torch.bfloat16, weights=None):
        """ids [B, T] compact rows; attend(layer, q, k, v, sinks) applies rotation and attention. -> (hidden [B, T, H], balance)"""
        s = self.shape
        w = {n: p.to(dtype) if p.dim() > 2 or n == "embedding" else p for n, p in (weights or self.effective()).items()}
        known = (ids < self.rows).unsqueeze(-1)
        x = F.embedding(ids.clamp(max=self.rows - 1), w["embedding"]) * known
        balance = 0.0
        for layer in range(s.layers):
            y = rms_norm(x, w["norm_in"][layer], s.eps)
            split = lambda name, heads: F.linear(y, w[name][layer], w[name + "_bias"][layer].to(dtype)).unflatten(-1, (heads, s.head_dim)).transpose(1, 2)
            mixed = attend(layer, split("q", s.heads), split("k", s.kv_heads), split("v", s.kv_heads), w["sinks"][layer])
            x = x + F.linear(mixed.transpose(1, 2).flatten(-2), w["o"][layer], w["o_bias"][layer].to(dtype))
            moe, fill = self.experts(rms_norm(x, w["norm_post"][layer], s.eps), w, layer)
            x, balance = x + moe, balance + fill / s.layers
        return rms_norm(x, w["norm_final"], s.eps), balance

    def experts(self, y, w, layer):
        """All experts on all tokens in two products; the weights of those not chosen are zero."""
        s, dtype = self.shape, y.dtype
        logits = F.linear(y.float(), w["router"][layer].float(), w["router_bias"][layer].float())
        threshold = logits.topk(s.top_k, -1).values[..., -1:]
        chosen = logits >= threshold
        gates = torch.softmax(logits.masked_fill(~chosen, float("-inf")), -1)
        up_bias = w["up_bias"][layer].flatten().to(dtype)
        h = F.linear(y, w["up"][layer].flatten(0, 1), up_bias).unflatten(-1, (s.experts, s.intermediate, 2)).float()
        gate, up = h[..., 0].clamp(max=s.limit), h[..., 1].clamp(-s.limit, s.limit)
        z = gate * torch.sigmoid(s.alpha * gate) * (up + 1) * gates.unsqueeze(-1)
        down = w["down"][layer].transpose(0, 1).flatten(1)
        out = F.linear(z.to(dtype).flatten(-2), down) + (gates @ w["down_bias"][layer].float()).to(dtype)
        share = chosen.float().mean((0, 1)) / s.top_k
        probability = torch.softmax(logits, -1).mean((0, 1))
        return out, s.experts * (share * probability).sum()

    def logits(self, hidden, weights=None):
        """[..., rows]; add log(untrained ids) to the log-sum-exp for the rest."""
        embedding = (weights or self.effective())["embedding"]
        return F.linear(hidden, embedding.to(hidden.dtype))
