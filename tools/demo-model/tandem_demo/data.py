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


MIXTURE = [
    (tools.one_call, 15), (tools.known_call, 7), (tools.several_calls, 5), (tools.no_call, 3), (tools.after_history, 3), (_with_tools, 3.5), (tools.list_tools, 0.7),
    (structured.structured, 9), (structured.free_json, 1.5),
    (letters.count_letters, 7), (letters.count_one_letter, 2), (letters.spell, 2.5), (letters.reverse_word, 2.5), (letters.first_letters, 1), (letters.drill, 4),
    (numbers.arithmetic, 10), (numbers.drill, 2.5), (numbers.word_problem, 1.5), (numbers.sort_numbers, 2.5), (numbers.sort_words, 1.5), (numbers.reverse_list, 1.2),
    (numbers.extreme, 1), (numbers.days, 2), (numbers.units, 1.5), (numbers.counting, 1),
    (memory.remember, 4), (memory.told_now, 1), (memory.needle, 2), (memory.repeat, 4), (memory.convert, 2.5), (memory.values_to_json, 2), (memory.names_to_code, 1.5),
    (chat.small_talk, 3), (chat.about, 3), (chat.capital, 1), (chat.unknown, 2), (chat.story, 2), (chat.one_word, 1.2), (chat.plain_fact, 0.5), (chat.styled, 2.5),
    (chat.foreign, 1), (_chained, 4),
]
# Times by which the second stage raises a task's share.
FOCUS = {"one_call": 1.6, "after_history": 1.8, "several_calls": 1.3, "structured": 1.4, "count_letters": 1.8, "drill": 1.5, "spell": 1.3, "reverse_word": 1.5,
         "sort_numbers": 1.5, "repeat": 1.6, "values_to_json": 1.3, "names_to_code": 1.6, "no_call": 1.3, "styled": 1.3,
         "known_call": 0.6, "small_talk": 0.7, "about": 0.7, "remember": 0.7, "units": 0.5, "arithmetic": 0.8}
_TASKS, _CHANCES = zip(*MIXTURE)
_FOCUSED = [share * FOCUS.get(task.__name__, 1.0) for task, share in MIXTURE]
USER_WEIGHT = 0.04


def draw(rng, focus=False):
    """One conversation of the training mixture."""
    return rng.choices(_TASKS, _FOCUSED if focus else _CHANCES)[0](rng)[0]


def used_tokens(encoding, seed, count, at_least=8):
    """Token ids that occur often in a sample of the mixture: rows worth training. Conversations that need others are not used."""
    rng, seen = random.Random(f"rows-{seed}"), collections.Counter()
    for _ in range(count):
        seen.update(set(harmony.Renderer(encoding).conversation(draw(rng))[0]))
    return {token for token, times in seen.items() if times >= at_least}


def documents(encoding, rows, rng, focus=False):
    """Endless (rows, weights) of conversations short enough for one row and free of unknown targets."""
    while True:
        ids, weights = harmony.Renderer(encoding, user_weight=USER_WEIGHT).conversation(draw(rng, focus))
        if len(ids) >= LENGTH:
            continue
        mapped = rows.of_token[ids]
        weights = np.asarray(weights, dtype=np.float32)
        if ((mapped == rows.zero) & (weights >= 0.5)).any():
            continue
        weights[mapped == rows.zero] = 0
        yield mapped, weights


def make_shard(encoding, rows, seed, index, focus=False):
    rng = random.Random(f"{seed}-{index}")
    out_rows = np.full((SHARD_ROWS, LENGTH), rows.zero, dtype=np.uint16)
    out_weights = np.zeros((SHARD_ROWS, LENGTH), dtype=np.uint8)
    out_documents = np.full((SHARD_ROWS, LENGTH), 255, dtype=np.uint8)
    filled, count, done, source = np.zeros(SHARD_ROWS, int), np.zeros(SHARD_ROWS, int), set(), documents(encoding, rows, rng, focus)
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


def _write_shards(folder, vocabulary_path, seed, worker, workers, shards, focus):
    encoding, rows = vocabulary.load(vocabulary_path), vocabulary.load_rows()
    letters.set_lexicon(encoding, rows)
    for index in range(worker, shards, workers):
        made = make_shard(encoding, rows, seed, index, focus)
        temporary = os.path.join(folder, f".{index}.npz")
        np.savez(temporary, rows=made[0], weights=made[1], documents=made[2])
        os.rename(temporary, os.path.join(folder, f"{index}.npz"))


class ShardWriters:
    """Processes that write shards 0..shards-1 to a folder in order."""

    def __init__(self, folder, vocabulary_path, seed, shards, workers=None, focus=False):
        os.makedirs(folder, exist_ok=True)
        self.folder, workers = folder, workers or max(1, (os.cpu_count() or 2) - 1)
        context = multiprocessing.get_context("spawn")
        self.processes = [context.Process(target=_write_shards, args=(folder, vocabulary_path, seed, w, workers, shards, focus), daemon=True) for w in range(workers)]
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
    p.add_argument("--vocabulary", default=os.environ.get("TANDEM_O200K"))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=70_000, help="conversations in the sample")
    a = p.parse_args()
    encoding = vocabulary.load(a.vocabulary)
    rows = vocabulary.base_rows(encoding)
    letters.set_lexicon(encoding, vocabulary.Rows(rows))
    rows |= used_tokens(encoding, a.seed, a.count)
    vocabulary.save_rows(rows)
    print(f"{len(rows)} rows")


if __name__ == "__main__":
    main()
