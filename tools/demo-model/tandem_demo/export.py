"""Writes a trained run as a checkpoint in the hub's layout, the weights compressed with zstd.

The two vocabulary matrices are the same bytes and lie next to each other in the file, 103 MB apart; a window of 2^27 (the largest
a zstd decoder accepts without being told) lets the second be stored as a copy of the first.
"""
import argparse
import hashlib
import json
import os
import struct

import numpy as np
import torch
import zstandard

from . import vocabulary
from .model import mxfp4_codes
from .train import load_model

WINDOW_LOG = 27
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def config(shape):
    s = shape
    return {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002, "experts_per_token": s.top_k,
        "head_dim": s.head_dim, "hidden_act": "silu", "hidden_size": s.hidden, "initial_context_length": s.original_context, "initializer_range": 0.02,
        "intermediate_size": s.intermediate, "layer_types": ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(s.layers)],
        "max_position_embeddings": int(s.original_context * s.factor), "model_type": "gpt_oss", "num_attention_heads": s.heads, "num_experts_per_tok": s.top_k,
        "num_hidden_layers": s.layers, "num_key_value_heads": s.kv_heads, "num_local_experts": s.experts, "output_router_logits": False, "pad_token_id": 199999,
        "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"},
        "rms_norm_eps": s.eps, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": s.factor, "original_max_position_embeddings": s.original_context,
                                                "rope_type": "yarn", "truncate": False},
        "rope_theta": int(s.theta), "router_aux_loss_coef": 0.01, "sliding_window": s.window, "swiglu_limit": s.limit, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": vocabulary.VOCAB_SIZE,
    }


GENERATION = {"bos_token_id": 199998, "do_sample": True, "eos_token_id": [200002, 199999, 200012], "pad_token_id": 199999}


def bf16_bytes(tensor):
    return tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def mxfp4_bytes(weight):
    """(blocks [..., groups, 16], scales [..., groups]) as uint8; low nibble first."""
    values, exponent = mxfp4_codes(weight.detach())
    magnitude = values.abs()
    code = torch.bucketize(magnitude, _E2M1)  # exact members of the table
    assert torch.equal(_E2M1[code], magnitude), "values are not on the E2M1 grid"
    code = (code + 8 * ((values < 0) & (magnitude > 0))).to(torch.uint8)
    blocks = code[..., 0::2] | (code[..., 1::2] << 4)
    scales = (exponent.squeeze(-1) + 127).clamp(0, 254).to(torch.uint8)
    return blocks.numpy(), scales.numpy()


def read_back(blocks, scales):
    """What a loader gets from MXFP4 bytes, in float32."""
    table = torch.cat([_E2M1, -_E2M1]).numpy()
    values = np.stack([table[blocks & 15], table[blocks >> 4]], -1).reshape(*blocks.shape[:-1], 32)
    return (values * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(*scales.shape[:-1], -1)


def tensors(model, rows):
    """Yields (name, dtype, array); the vocabulary matrices come first and are full-sized."""
    w = {n: t.detach() for n, t in model.effective().items()}
    full = np.zeros((vocabulary.VOCAB_SIZE, model.shape.hidden), dtype=np.int16)
    full[rows.ids] = bf16_bytes(w["embedding"])
    yield "model.embed_tokens.weight", "BF16", full
    yield "lm_head.weight", "BF16", full
    for i in range(model.shape.layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", "BF16", bf16_bytes(w["norm_in"][i])
        yield at + "post_attention_layernorm.weight", "BF16", bf16_bytes(w["norm_post"][i])
        for name in "qkvo":
            yield f"{at}self_attn.{name}_proj.weight", "BF16", bf16_bytes(w[name][i])
            yield f"{at}self_attn.{name}_proj.bias", "BF16", bf16_bytes(w[name + "_bias"][i])
        yield at + "self_attn.sinks", "BF16", bf16_bytes(w["sinks"][i])
        yield at + "mlp.router.weight", "BF16", bf16_bytes(w["router"][i])
        yield at + "mlp.router.bias", "BF16", bf16_bytes(w["router_bias"][i])
        for name, full_name in (("up", "gate_up_proj"), ("down", "down_proj")):
            blocks, scales = mxfp4_bytes(w[name][i])
            assert np.array_equal(read_back(blocks, scales), w[name][i].numpy()), f"layer {i} {full_name}: MXFP4 does not read back as trained"
            yield f"{at}mlp.experts.{full_name}_blocks", "U8", blocks
            yield f"{at}mlp.experts.{full_name}_scales", "U8", scales
            yield f"{at}mlp.experts.{full_name}_bias", "BF16", bf16_bytes(w[name + "_bias"][i])
    yield "model.norm.weight", "BF16", bf16_bytes(w["norm_final"])


def write_safetensors(path, items):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, array in items:
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, _, array in items:
            file.write(np.ascontiguousarray(array).tobytes())


def compress(source, target, level=22):
    """Streams `source` into one zstd frame; returns the SHA-256 of the expanded bytes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=WINDOW_LOG, enable_ldm=True, ldm_hash_log=24, write_checksum=True)
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as file, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as writer:
        while piece := reader.read(1 << 22):
            digest.update(piece)
            writer.write(piece)
    check = hashlib.sha256()
    with open(target, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        while piece := reader.read(1 << 22):
            check.update(piece)
    assert check.digest() == digest.digest(), "the compressed file does not expand to what was written"
    return digest.hexdigest()


def export(run, out, keep_expanded=None):
    model, rows = load_model(run), vocabulary.load_rows()
    os.makedirs(out, exist_ok=True)
    for name, content in (("config.json", config(model.shape)), ("generation_config.json", GENERATION)):
        with open(os.path.join(out, name), "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
    expanded = os.path.join(keep_expanded or out, "model.safetensors")
    os.makedirs(os.path.dirname(expanded), exist_ok=True)
    write_safetensors(expanded, list(tensors(model, rows)))
    digest = compress(expanded, os.path.join(out, "model.safetensors.zst"))
    size = os.path.getsize(expanded)
    if keep_expanded:
        for name in ("config.json", "generation_config.json"):
            with open(os.path.join(out, name)) as source, open(os.path.join(keep_expanded, name), "w") as target:
                target.write(source.read())
    else:
        os.remove(expanded)
    packed = os.path.getsize(os.path.join(out, "model.safetensors.zst"))
    with open(os.path.join(out, "model.safetensors.sha256"), "w") as file:
        file.write(f"{digest}  model.safetensors\n")
    print(json.dumps({"expanded_bytes": size, "compressed_bytes": packed, "sha256": digest, "rows": len(rows.ids)}))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--keep-expanded", help="folder that also gets the checkpoint uncompressed")
    a = p.parse_args()
    export(a.run, a.out, a.keep_expanded)
