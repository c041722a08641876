"""The o200k_harmony vocabulary and the subset of its rows that training touches.

The vocabulary file is `o200k_base.tiktoken` (SHA-256 446a9538…). Its path comes from --vocabulary or O200K_VOCABULARY.
"""
import json
import os
import re

import numpy as np
import tiktoken
from tiktoken.load import load_tiktoken_bpe

VOCAB_SIZE = 201088
RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL = 200002, 200003, 200005, 200006, 200007, 200008, 200012
PAD = 199999
SPECIALS = {RETURN: "<|return|>", CONSTRAIN: "<|constrain|>", CHANNEL: "<|channel|>", START: "<|start|>",
            END: "<|end|>", MESSAGE: "<|message|>", CALL: "<|call|>"}
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
ROWS_FILE = os.path.join(os.path.dirname(__file__), "..", "trained_rows.json")

# The split pattern of o200k_base (tiktoken's openai_public.py).
_PATTERN = "|".join([
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
])


def load(path=None):
    """The encoding, special tokens included."""
    path = path or os.environ.get("O200K_VOCABULARY")
    if not path:
        raise SystemExit("name the vocabulary file o200k_base.tiktoken with --vocabulary or O200K_VOCABULARY")
    ranks = load_tiktoken_bpe(path, expected_hash=SHA256)
    specials = {text: token for token, text in SPECIALS.items()} | {"<|endoftext|>": PAD}
    return tiktoken.Encoding("o200k_harmony", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def base_rows(encoding, letters_below=11000):
    """Rows trained whatever the generators say: English-looking letter runs of low rank, and numbers of up to three digits."""
    rows = set(SPECIALS)
    for token in range(199998):
        raw = encoding.decode_single_token_bytes(token)
        letters = token < letters_below and re.fullmatch(rb" ?[A-Za-z]+", raw)
        if letters or re.fullmatch(rb"[0-9]{1,3}", raw):
            rows.add(token)
    return rows


class Rows:
    """Maps token ids to rows of the compact matrices training works on; the last row is the zero row of all other ids."""

    def __init__(self, ids):
        self.ids = np.array(sorted(ids), dtype=np.int64)
        self.zero = len(self.ids)
        self.of_token = np.full(VOCAB_SIZE, self.zero, dtype=np.int32)
        self.of_token[self.ids] = np.arange(len(self.ids), dtype=np.int32)

    @property
    def untrained(self):
        return VOCAB_SIZE - len(self.ids)


def load_rows(path=ROWS_FILE):
    return Rows(json.load(open(path)))


def save_rows(ids, path=ROWS_FILE):
    with open(path, "w") as file:
        json.dump(sorted(int(i) for i in ids), file, separators=(",", ":"))
