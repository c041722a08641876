"""Spelling, letter counting, reversing.

A model sees tokens, not letters. Its working therefore names the tokens of the word one by one, exactly as the question holds them,
and spells each: a copy and a look-up at every step, and numbers that run on over the pieces.
"""
import re

from .. import words
from .common import answer, conversation, draw_effort, held_out, think, user

_COMMON_RANK = 11000
_ENCODING, _COMMON, _EVERY = [], [], []


def set_lexicon(encoding, rows):
    """Reads from the trained rows what there is to spell; called once by the data pipeline."""
    _ENCODING[:] = [encoding]
    _COMMON.clear()
    _EVERY.clear()
    for token in rows.ids:
        if token >= 199998:
            continue
        raw = encoding.decode_single_token_bytes(int(token))
        if re.fullmatch(rb" ?[A-Za-z]+", raw):
            _EVERY.append(raw.decode())
            if token < _COMMON_RANK and 3 <= len(raw.strip()) <= 12:
                _COMMON.append(raw.decode())


def any_piece(rng):
    """A letter run that is one common token, with or without its leading space."""
    return rng.choice(_COMMON)


def every_piece(rng):
    """The same from all trained tokens, single letters and rare ones as well."""
    return rng.choice(_EVERY)


def pieces(word, spaced=True):
    """The tokens of a word as texts, after a space (which the first then holds) or after a quotation mark."""
    encoding = _ENCODING[0]
    return [encoding.decode([token]) for token in encoding.encode_ordinary(" " + word if spaced else word)]


def by_pieces(word, spaced=True, mark=lambda letter, at: f"{letter}{at}"):
    """A line for each token of the word: the token, then its letters, each as `mark` writes it."""
    lines, at = [], 0
    for piece in pieces(word, spaced):
        letters = []
        for letter in piece.strip():
            at += 1
            letters.append(mark(letter, at))
        lines.append(f"{piece}: {' '.join(letters)}")
    return "By pieces:\n" + "\n".join(lines)


def _draw_word(rng):
    kind = rng.random()
    if kind < 0.35:
        return any_piece(rng).strip()
    if kind < 0.5:
        return rng.choice(words.THINGS + words.ANIMALS + words.FOODS + words.JOBS + words.ADJECTIVES)
    if kind < 0.58:
        return rng.choice(words.CITIES + words.FIRST_NAMES + words.LAST_NAMES).split()[0]
    if kind < 0.72:
        return any_piece(rng).strip() + any_piece(rng).strip().lower()
    return words.mixed_word(rng)


def draw_word(rng, held, longest=14):
    for _ in range(300):
        word = _draw_word(rng)
        if len(word) <= longest and held_out(word.lower()) == held:
            return word
    return word


def numbered(word):
    return " ".join(f"{letter}{i}" for i, letter in enumerate(word, 1))


def spelled(word, join=" "):
    return join.join(word)


def count_letters(rng, held=False, effort=None):
    word, effort = draw_word(rng, held, 12 if held else 15), effort or draw_effort(rng)
    quote = rng.choice(["{}", "{}", '"{}"', "'{}'", "**{}**", "`{}`"])
    shown = quote.format(word)
    question = rng.choice([
        "How many letters are in the word {}?", "How many letters are in {}?", "How many letters does {} have?",
        "how many letters in {}", "Count the letters in {}.", "How many characters are in the word {}?",
        "Count the letters of the word {}, please.", "What is the number of letters in {}?", "Tell me how long the word {} is.",
    ]).format(shown)
    count = f"{len(word)} letter" + ("" if len(word) == 1 else "s")
    core = f"{by_pieces(word, quote == '{}')}\nSo {len(word)}."
    # The word in the answer has the quotation marks of the question, and so its tokens.
    reply = rng.choice([f"The word {shown} has {count}.", f"There {'is' if len(word) == 1 else 'are'} {count} in {shown}."])
    return conversation(rng, [user(question), answer(think(rng, effort, "wants the number of letters", core), reply)],
                        effort=effort), {"kind": "number", "value": len(word)}


def count_one_letter(rng, held=False):
    word, effort = draw_word(rng, held), draw_effort(rng)
    lower = word.lower()
    letter = rng.choice(lower) if rng.random() < 0.9 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    total = lower.count(letter)

    def mark(char, at):
        return f"{char}{lower[:at].count(letter)}" if char.lower() == letter else char
    question = rng.choice(["How many {l}'s are in {w}?", "How many times does the letter {l} appear in {w}?",
                           "How many {l} are in the word {w}?", "Count the letter {l} in {w}."]).format(l=letter, w=word)
    core = f"Counting {letter}. {by_pieces(word, mark=mark)}\nSo {total}."
    times = "time" if total == 1 else "times"
    return conversation(rng, [user(question), answer(think(rng, effort, "wants a letter counted", core),
                                                     f"The letter {letter} appears {total} {times} in {word}.")],
                        effort=effort), {"kind": "number", "value": total}


def spell(rng, held=False):
    word, effort = draw_word(rng, held), draw_effort(rng)
    question = rng.choice(["Spell {}.", "How do you spell {}?", "Spell the word {}, please.", "Write {} letter by letter."]).format(word)
    return conversation(rng, [user(question), answer(think(rng, effort, "wants a word spelled", by_pieces(word) + "."),
                                                     spelled(word, "-"))], effort=effort), {"kind": "text", "value": spelled(word, "-")}


def reverse_word(rng, held=False):
    word, effort = draw_word(rng, held, 10), draw_effort(rng)
    question = rng.choice(["Reverse the word {}.", "Write {} backwards.", "Spell {} backwards.", "What is {} reversed?"]).format(word)
    turned = word[::-1]
    back = " ".join(f"{letter}{i}" for i, letter in reversed(list(enumerate(word, 1))))
    core = f"{by_pieces(word)}\nBackwards: {back}."
    dashed = "Spell" in question
    reply = spelled(turned, "-") if dashed else turned
    # A list is encoded piece by piece: letters one at a time, since nobody can predict the tokens of a reversed word.
    message = answer(think(rng, effort, "wants a word backwards", core), reply if dashed else list(turned))
    return conversation(rng, [user(question), message], effort=effort), {"kind": "text", "value": reply}


def drill(rng, held=False):
    """Many single tokens spelled in one answer: teaches the letters of every row, cheaply."""
    chosen = [every_piece(rng) for _ in range(rng.randint(8, 40))]
    ask, form = rng.choice([("Spell these words:", spelled), ("Number the letters of these words:", numbered)])
    question = ask + "".join(p if p.startswith(" ") else f"\n{p}" for p in chosen)
    body = "\n".join(f"{p}: {form(p.strip())}" for p in chosen)
    return conversation(rng, [user(question), answer("One line each.", body)], effort="low", instructions=None), None


def count_drill(rng, held=False):
    """Several words in pieces, each with its count."""
    drawn = [(draw_word(rng, held, 15), rng.random() < 0.5) for _ in range(rng.randint(3, 9))]
    question = "Count the letters of each:" + "".join(f" {word}" if spaced else f"\n{word}" for word, spaced in drawn)
    body = "\n".join(f"{by_pieces(word, spaced)}\nSo {len(word)}." for word, spaced in drawn)
    return conversation(rng, [user(question), answer("One after the other.", body)], effort="low", instructions=None), None


def first_letters(rng, held=False):
    word, effort = draw_word(rng, held), draw_effort(rng)
    which, index = rng.choice([("first", 0), ("last", -1)])
    core = f"{by_pieces(word)}\nThe {which} is {word[index]}."
    return conversation(rng, [user(f"What is the {which} letter of {word}?"),
                              answer(think(rng, effort, f"wants the {which} letter", core), f"The {which} letter of {word} is {word[index]}.")],
                        effort=effort), {"kind": "text", "value": word[index]}
