"""How layers attend during training: FlexAttention on a GPU, plain masked attention elsewhere."""
import torch

from .model import dense_attention, rope_tables, rotate


def _pair_mask(documents, window):
    """Allowed (query, key) pairs [B, 1, T, T]: same document, not later, and within the window where there is one."""
    at = torch.arange(documents.shape[1], device=documents.device)
    distance = at[:, None] - at[None, :]
    mask = (distance >= 0)[None] & (documents[:, :, None] == documents[:, None, :])
    if window:
        mask = mask & (distance < window)[None]
    return mask[:, None]


def dense_attend(shape, documents):
    cos, sin = (t.to(documents.device) for t in rope_tables(shape, documents.shape[1]))
    masks = [_pair_mask(documents, shape.window), _pair_mask(documents, None)]

    def attend(layer, q, k, v, sinks):
        return dense_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, sinks, masks[layer % 2])
    return attend


class FlexAttend:
    """Documents packed in a row do not see each other; the sink is folded in afterwards through the log-sum-exp."""

    def __init__(self, shape, length, device):
        from torch.nn.attention import flex_attention
        self.flex, self.shape, self.length = flex_attention, shape, length
        self.cos, self.sin = (t.to(device) for t in rope_tables(shape, length))
        self.make = torch.compile(flex_attention.create_block_mask)

    def masks(self, documents):
        window, batch = self.shape.window, documents.shape[0]

        def full(b, h, i, j):
            return (i >= j) & (documents[b, i] == documents[b, j])

        def sliding(b, h, i, j):
            return (i >= j) & (i - j < window) & (documents[b, i] == documents[b, j])
        return [self.make(fn, batch, None, self.length, self.length, device=documents.device) for fn in (sliding, full)]

    def bind(self, masks):
        def attend(layer, q, k, v, sinks):
            out, lse = self.flex.flex_attention(rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin), v, block_mask=masks[layer % 2],
                                                enable_gqa=True, return_lse=True)
            return (out.float() * torch.sigmoid(lse - sinks[None, :, None])[..., None]).to(q.dtype)
        return attend
