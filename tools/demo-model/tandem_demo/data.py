"""Mixes the generators and packs their conversations into training rows.

A shard is `SHARD_ROWS` rows of `LENGTH` tokens, made from (seed, shard index) alone, so that training sees the same text however
many processes write it. Arrays of a shard: rows (uint16, index into the compact vocabulary), weights (uint8, 255 = full loss),
documents (uint8, which document of the row a position belongs to).
"""
import argparse
import collections
import multiprocessing
import os
import random
import time

import numpy as np

from . import harmony, vocabulary
from .tasks import chat, letters, memory, numbers, structured, tools

LENGTH, SHARD_ROWS, OPEN_BINS = 2048, 256, 24

_PLAIN = [chat.small_talk, chat.about, chat.capital, numbers.arithmetic, letters.count_letters, memory.repeat, numbers.sort_numbers, numbers.days, chat.story,
          memory.told_now, chat.plain_fact]


def _chained(rng, held=False):
    return chat.chain(rng, held, _PLAIN + [structured.free_json, letters.reverse_word, numbers.units])


def _with_tools(rng, held=False):
    return tools.with_tools(rng, rng.choice(_PLAIN), held)


# Shares of conversations, not of tokens.
MIXTURE = [
    (tools.one_call, 21), (tools.known_call, 5), (tools.several_calls, 5), (tools.no_call, 4), (tools.after_history, 5), (_with_tools, 3), (tools.list_tools, 0.5),
    (structured.structured, 12), (structured.free_json, 1.5),
    (letters.count_letters, 9), (letters.count_one_letter, 1.5), (letters.spell, 1.5), (letters.reverse_word, 4), (letters.first_letters, 0.7), (letters.drill, 8),
    (letters.count_drill, 3),
    (numbers.arithmetic, 8), (numbers.drill, 2), (numbers.word_problem, 1.5), (numbers.sort_numbers, 3.5), (numbers.sort_words, 1.5), (numbers.reverse_list, 1),
    (numbers.extreme, 0.8), (numbers.days, 1.3), (numbers.units, 1), (numbers.counting, 0.8),
    (memory.remember, 3), (memory.told_now, 0.8), (memory.needle, 2.5), (memory.repeat, 5), (memory.convert, 4), (memory.values_to_json, 4), (memory.names_to_code, 5),
    (memory.copy_list, 4), (memory.look_up, 3),
    (chat.small_talk, 2.5), (chat.about, 2.2), (chat.capital, 0.7), (chat.unknown, 1.5), (chat.story, 1.5), (chat.one_word, 1), (chat.plain_fact, 0.4), (chat.styled, 3),
    (chat.foreign, 0.7), (_chained, 4),
]
_TASKS, _CHANCES = zip(*MIXTURE)


def draw(rng):
    """One conversation of the training mixture."""
    return rng.choices(_TASKS, _CHANCES)[0](rng)[0]


def used_tokens(encoding, seed, count):
    """How many conversations of a sample, half of them of the held-out side, hold each token id."""
    rng, seen = random.Random(f"rows-{seed}"), collections.Counter()
    for i in range(count):
        conversation = rng.choices(_TASKS, _CHANCES)[0](rng, i % 2 == 0)[0]
        seen.update(set(harmony.Renderer(encoding).conversation(conversation)[0]))
    return seen


def documents(encoding, rows, rng):
    """Endless (rows, weights) of conversations short enough for one row and free of unknown targets."""
    while True:
        ids, weights = harmony.Renderer(encoding, user_weight=0.0).conversation(draw(rng))
        if len(ids) >= LENGTH:
            continue
        mapped = rows.of_token[ids]
        weights = np.asarray(weights, dtype=np.float32)
        if ((mapped == rows.zero) & (weights > 0)).any():
            continue
        yield mapped, weights


def make_shard(encoding, rows, seed, index):
    rng = random.Random(f"{seed}-{index}")
    out_rows = np.full((SHARD_ROWS, LENGTH), rows.zero, dtype=np.uint16)
    out_weights = np.zeros((SHARD_ROWS, LENGTH), dtype=np.uint8)
    out_documents = np.full((SHARD_ROWS, LENGTH), 255, dtype=np.uint8)
    filled, count, done, source = np.zeros(SHARD_ROWS, int), np.zeros(SHARD_ROWS, int), set(), documents(encoding, rows, rng)
    window = list(range(OPEN_BINS))
    following = OPEN_BINS
    while window:
        ids, weights = next(source)
        home = next((i for i in window if filled[i] + len(ids) <= LENGTH), None)
        if home is None:
            # Nothing fits: the fullest open row is closed and a fresh one opened.
            fullest = max(window, key=lambda i: filled[i])
            window.remove(fullest)
            if following >= SHARD_ROWS:
                continue
            home, following = following, following + 1
            window.append(home)
        at = filled[home]
        out_rows[home, at:at + len(ids)] = ids
        out_weights[home, at:at + len(ids)] = np.round(weights * 255)
        out_weights[home, at] = 0
        out_documents[home, at:at + len(ids)] = min(count[home], 254)
        filled[home] += len(ids)
        count[home] += 1
    return out_rows, out_weights, out_documents


def _write_shards(folder, vocabulary_path, seed, indices):
    encoding, rows = vocabulary.load(vocabulary_path), vocabulary.load_rows()
    letters.set_lexicon(encoding, rows)
    for index in indices:
        _wait_for_turn(folder, index)
        made = make_shard(encoding, rows, seed, index)
        temporary = os.path.join(folder, f".{index}.npz")
        np.savez(temporary, rows=made[0], weights=made[1], documents=made[2])
        os.rename(temporary, os.path.join(folder, f"{index}.npz"))


# Shards of 2 MB that may lie there unread.
AHEAD = 1024


def _wait_for_turn(folder, index):
    """Until the oldest shard not yet read is less than AHEAD behind."""
    while (waiting := [int(name[:-4]) for name in os.listdir(folder) if name[0] != "."]) and index >= min(waiting) + AHEAD:
        time.sleep(0.1)


class ShardWriters:
    """Processes that write the shards `first`, `first + stride`, … below `shards` to a folder in order."""

    def __init__(self, folder, vocabulary_path, seed, shards, workers=None, first=0, stride=1):
        os.makedirs(folder, exist_ok=True)
        self.folder, workers = folder, workers or max(1, (os.cpu_count() or 2) // (2 * stride))
        context = multiprocessing.get_context("spawn")
        indices = range(first, shards, stride)
        self.processes = [context.Process(target=_write_shards, args=(folder, vocabulary_path, seed, indices[w::workers]), daemon=True) for w in range(workers)]
        for process in self.processes:
            process.start()

    def take(self, index, wait=True, deadline_s=300):
        """The arrays of one shard, or None when it is not written yet and `wait` is off."""
        path, until = os.path.join(self.folder, f"{index}.npz"), time.time() + deadline_s
        while not os.path.exists(path):
            if not wait:
                return None
            if time.time() > until:
                raise TimeoutError(f"shard {index} was not written within {deadline_s} s")
            time.sleep(0.02)
        arrays = np.load(path)
        made = arrays["rows"], arrays["weights"], arrays["documents"]
        os.remove(path)
        return made

    def stop(self):
        for process in self.processes:
            process.terminate()


def main():
    p = argparse.ArgumentParser(description="Chooses the rows of the vocabulary matrices that are trained, and writes trained_rows.json.")
    p.add_argument("--vocabulary", default=os.environ.get("O200K_VOCABULARY"))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=600_000, help="conversations in the sample")
    p.add_argument("--rows", type=int, default=20_200, help="rows in all at most; the file grows by about 260 bytes for each")
    p.add_argument("--at-least", type=int, default=3, help="conversations of the sample that hold a token worth a row")
    a = p.parse_args()
    encoding = vocabulary.load(a.vocabulary)
    rows = vocabulary.base_rows(encoding)
    letters.set_lexicon(encoding, vocabulary.Rows(rows))
    for token, times in used_tokens(encoding, a.seed, a.count).most_common():
        if len(rows) < a.rows and times >= a.at_least:
            rows.add(token)
    vocabulary.save_rows(rows)
    print(f"{len(rows)} rows")


if __name__ == "__main__":
    main()
