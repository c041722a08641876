"""Batched generation in torch with a KV cache: evaluation during training, without the server."""
import math

import torch

from .model import dense_attention, rope_tables, rotate
from .vocabulary import CALL, PAD, RETURN

STOPS = (RETURN, CALL, PAD)


class Decoder:
    """Greedy or temperature-1 continuation of token-id prompts. Token ids outside the trained rows enter as zero rows."""

    def __init__(self, model, rows, device, dtype=torch.bfloat16):
        self.model, self.rows, self.device, self.dtype = model, rows, device, dtype
        with torch.no_grad():
            self.weights = {n: p.detach() for n, p in model.effective().items()}
        self.stops = torch.tensor([int(rows.of_token[t]) for t in STOPS if rows.of_token[t] != rows.zero], device=device)
        self.start = int(rows.of_token[PAD]) if rows.of_token[PAD] != rows.zero else 0

    @torch.no_grad()
    def generate(self, prompts, new_tokens=400, temperature=0.0, seed=0):
        """Lists of generated token ids, stop token included when it came. A sampled id without a row is reported as -1 and ends."""
        shape, count = self.model.shape, len(prompts)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        longest, total = int(lengths.max()), int(lengths.max()) + new_tokens
        ids = torch.full((count, longest), self.rows.zero, dtype=torch.long, device=self.device)
        for i, prompt in enumerate(prompts):
            ids[i, :len(prompt)] = torch.from_numpy(self.rows.of_token[prompt].astype("int64"))
        cos, sin = (t.to(self.device) for t in rope_tables(shape, total))
        cache = [torch.zeros(shape.layers, count, shape.kv_heads, total, shape.head_dim, device=self.device, dtype=self.dtype) for _ in "kv"]
        generator = torch.Generator(self.device).manual_seed(seed)
        everywhere = torch.arange(total, device=self.device)

        def run(tokens, positions):
            """tokens [B, T] at positions [B, T] -> hidden; keys and values go to the cache."""
            c, s = cos[positions][:, None], sin[positions][:, None]
            distance = positions[:, :, None] - everywhere[None, None, :]
            masks = [(distance >= 0) & (distance < shape.window), distance >= 0]
            batch = torch.arange(count, device=self.device)[:, None]

            def attend(layer, q, k, v, sinks):
                cache[0][layer][batch, :, positions] = rotate(k, c, s).transpose(1, 2)
                cache[1][layer][batch, :, positions] = v.transpose(1, 2)
                return dense_attention(rotate(q, c, s), cache[0][layer], cache[1][layer], sinks, masks[layer % 2][:, None])
            return self.model(tokens, attend, self.dtype, self.weights)[0]
        hidden = run(ids, torch.arange(longest, device=self.device)[None].expand(count, -1))
        last = hidden[torch.arange(count, device=self.device), lengths - 1]
        out, alive, at = [], torch.ones(count, dtype=torch.bool, device=self.device), lengths.clone()
        for _ in range(new_tokens):
            logits = self.model.logits(last, self.weights).float()
            if temperature > 0:
                rest = torch.full((count, 1), math.log(self.rows.untrained), device=self.device)
                token = torch.multinomial(torch.softmax(torch.cat([logits / temperature, rest], -1), -1), 1, generator=generator)[:, 0]
            else:
                token = logits.argmax(-1)
            token = torch.where(alive, token, torch.full_like(token, -2))
            out.append(token)
            alive = alive & (token != self.rows.zero) & ~torch.isin(token, self.stops)
            if not alive.any():
                break
            last = run(token.clamp(min=0)[:, None], at[:, None])[:, 0]
            at = (at + 1).clamp(max=total - 1)
        made = torch.stack(out, 1).tolist()
        names = self.rows.ids.tolist() + [-1]
        return [[names[t] for t in row if t != -2] for row in made]
