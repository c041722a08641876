#!/usr/bin/env python3
"""Writes a random gpt-oss checkpoint in the hub's layout, and the logits that Hugging Face transformers computes from it.

usage: transformers_logits.py FOLDER [--shape 20b|small] [--lengths 1,17,96,420] [--seed 1] [--depth-gain 0.25]

FOLDER gets `config.json`, `model.safetensors` (13.8 GB for 20b) and `reference.safetensors`: per prompt i of random tokens
`tokens_i`, `logits_i` in f32 and `err_bf16_i`, the relative error of the same model run in bfloat16, as tests/golden/README.md
says. `TANDEM_TEST_CHECKPOINT=FOLDER` then makes a GPU test compare. Needs torch, transformers, accelerate and safetensors; of a
GPU 60 GB for 20b.
"""

import argparse
import json
import math
import pathlib
import struct
import time

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.utils import logging

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {
    "20b": dict(layers=24, experts=32, hidden=2880, intermediate=2880, heads=64, kv_heads=8, vocab=201088, window=128, context=4096),
    # As deep, for trying this out on a CPU.
    "small": dict(layers=24, experts=32, hidden=256, intermediate=192, heads=8, kv_heads=2, vocab=5000, window=32, context=256),
}
HEAD, TOP_K = 64, 4
CLEAR_MARGIN = 0.1
RMS_OF_CODES = 2.9  # of the sixteen E2M1 codes, equally likely


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="20b")
    parser.add_argument("--lengths", default="1,17,96,420")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--depth-gain", type=float, default=0.25, help="what all layers add, beside the embedding")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    shape = argparse.Namespace(**SHAPES[asked.shape])
    generator = torch.Generator(DEVICE).manual_seed(asked.seed)
    with timed("checkpoint written"):
        (asked.folder / "config.json").write_text(json.dumps(config(shape), indent=1))
        write(asked.folder / "model.safetensors", tensors(shape, asked.depth_gain), generator)
    lengths = [int(length) for length in asked.lengths.split(",")]
    prompts = [torch.randint(shape.vocab, (length,), generator=generator, device=DEVICE) for length in lengths]
    with timed("reference computed"):
        save_file(reference(asked.folder, prompts), asked.folder / "reference.safetensors")


class timed:
    """Says how long what stands in it took."""

    def __init__(self, what):
        self.what, self.start = what, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            print(f"{self.what} in {time.monotonic() - self.start:.1f} s", flush=True)


# ---- the checkpoint ----


def config(s):
    return {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "torch_dtype": "bfloat16", "attention_bias": True,
        "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True,
        "eos_token_id": min(200002, s.vocab - 1), "pad_token_id": min(199999, s.vocab - 1), "vocab_size": s.vocab,
        "num_hidden_layers": s.layers, "hidden_size": s.hidden, "intermediate_size": s.intermediate, "head_dim": HEAD,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "sliding_window": s.window,
        "layer_types": [("sliding_attention", "full_attention")[layer % 2] for layer in range(s.layers)],
        "num_local_experts": s.experts, "num_experts_per_tok": TOP_K, "experts_per_token": TOP_K, "router_aux_loss_coef": 0.9,
        "output_router_logits": False, "rms_norm_eps": 1e-5, "swiglu_limit": 7.0, "rope_theta": 150000,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                         "original_max_position_embeddings": s.context, "truncate": False},
        "initial_context_length": s.context, "max_position_embeddings": 32 * s.context,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]},
    }


def tensors(s, depth_gain):
    """(name, shape, how to fill it) of every tensor. Gains are such that values stay of order one. How sensitive a random model is
    follows from two of them. Routers have logits of deviation 4, so that experts about which rounding changes its mind have little
    weight; and what all layers add is a quarter of the residual stream. With the gains of tests/golden, whose models have a few
    layers, 24 layers in bfloat16 are 28 % off f32 and agree with it at half of the positions: nothing finer could be seen. Here
    one layer gone wrong still is 5 % of the logits."""
    q, kv = s.heads * HEAD, s.kv_heads * HEAD
    depth = 2 * depth_gain * math.sqrt(4 / s.layers)
    scale = 127 + round(math.log2(1 / (RMS_OF_CODES * math.sqrt(s.hidden)))) - 1
    down = scale - 3 + round(math.log2(depth))
    yield "model.embed_tokens.weight", (s.vocab, s.hidden), uniform(math.sqrt(s.hidden / 3))
    for layer in range(s.layers):
        at = f"model.layers.{layer}."
        attention, experts = at + "self_attn.", at + "mlp.experts."
        yield at + "input_layernorm.weight", (s.hidden,), uniform(0.15, 1)
        for name, rows, gain, bias in (("q", q, 1, 0.3), ("k", kv, 1, 0.3), ("v", kv, 1, 0.2)):
            yield f"{attention}{name}_proj.weight", (rows, s.hidden), uniform(gain)
            yield f"{attention}{name}_proj.bias", (rows,), uniform(bias)
        yield attention + "o_proj.weight", (s.hidden, q), uniform(0.5 * depth)
        yield attention + "o_proj.bias", (s.hidden,), uniform(0.1 * depth)
        yield attention + "sinks", (s.heads,), uniform(1)
        yield at + "post_attention_layernorm.weight", (s.hidden,), uniform(0.15, 1)
        yield at + "mlp.router.weight", (s.experts, s.hidden), uniform(4)
        yield at + "mlp.router.bias", (s.experts,), uniform(0.3)
        for name, rows, cols, first, bias in (("gate_up", 2 * s.intermediate, s.hidden, scale, 0.3),
                                              ("down", s.hidden, s.intermediate, down, 0.3 * depth)):
            yield f"{experts}{name}_proj_blocks", (s.experts, rows, cols // 32, 16), codes(0, 256)
            yield f"{experts}{name}_proj_scales", (s.experts, rows, cols // 32), codes(first, first + 3)
            yield f"{experts}{name}_proj_bias", (s.experts, rows), uniform(bias, fan=1)
    yield "model.norm.weight", (s.hidden,), uniform(0.15, 1)
    yield "lm_head.weight", (s.vocab, s.hidden), uniform(2)


def uniform(gain, offset=0.0, fan=None):
    """BF16, of deviation `gain` over the square root of the inputs of an output."""

    def fill(shape, generator):
        inputs = fan or (shape[-1] if len(shape) > 1 else 1)
        values = torch.rand(shape, generator=generator, device=DEVICE) * 2 - 1
        return (values * (gain * math.sqrt(3 / inputs)) + offset).bfloat16()

    fill.dtype, fill.bytes = "BF16", 2
    return fill


def codes(first, end):
    """Bytes, equally likely."""

    def fill(shape, generator):
        return torch.randint(first, end, shape, generator=generator, device=DEVICE, dtype=torch.uint8)

    fill.dtype, fill.bytes = "U8", 1
    return fill


def write(path, tensors, generator):
    """A safetensors file, tensor by tensor: the whole need not fit memory."""
    tensors, header, end = list(tensors), {}, 0
    for name, shape, fill in tensors:
        begin, end = end, end + math.prod(shape) * fill.bytes
        header[name] = {"dtype": fill.dtype, "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, shape, fill in tensors:
            fill(shape, generator).view(torch.uint8).cpu().numpy().tofile(file)
    print(f"{path}: {end / 1e9:.2f} GB, {len(tensors)} tensors")


# ---- what transformers makes of it ----


def reference(folder, prompts):
    """The file's tensors. Bfloat16 first, as transformers loads it; then f32, from the same weights, widened."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = load(folder)
    half = [logits(model, tokens) for tokens in prompts]
    widen(model)
    out, sums = {}, torch.zeros(4)
    for i, (tokens, low) in enumerate(zip(prompts, half)):
        full = logits(model, tokens)
        assert full.isfinite().all(), "logits that are not finite"
        difference, norm = (low - full).norm(), full.norm()
        top = full.topk(2).values
        clear = top[:, 0] - top[:, 1] > CLEAR_MARGIN
        agree = clear & (low.argmax(-1) == full.argmax(-1))
        print(f"{len(tokens)} tokens: deviation {full.std():.2f}, error of bfloat16 {difference / norm:.2e}, "
              f"its first choice agrees at {agree.sum()} of {clear.sum()} clear positions of {len(clear)}", flush=True)
        sums += torch.tensor([difference**2, norm**2, agree.sum(), clear.sum()])
        out[f"tokens_{i}"], out[f"logits_{i}"] = tokens.int().cpu(), full
        out[f"err_bf16_{i}"] = difference / norm
    print(f"transformers in bfloat16: error {(sums[0] / sums[1]).sqrt():.2e}, agreement {sums[2] / sums[3]:.4f} of {int(sums[3])}")
    return out


def load(folder):
    logging.disable_progress_bar()
    with timed("loaded by transformers"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map=DEVICE, attn_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True))
    return model.eval()


def widen(model):
    """From now on everything is computed in f32. A layer's weights are wide while it runs: all together are 84 GB for 20b."""
    model.set_experts_implementation("eager")
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, _: module.float() and None)
        layer.register_forward_hook(lambda module, *_: module.bfloat16() and None)
    for module in (model.model.embed_tokens, model.model.norm, model.lm_head):
        module.float()


@torch.no_grad()
def logits(model, tokens):
    return model(tokens[None], use_cache=False).logits[0].float().cpu()


if __name__ == "__main__":
    main()
