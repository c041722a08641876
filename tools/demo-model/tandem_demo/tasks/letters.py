"""Spelling, letter counting, reversing."""
import re

from .. import words
from .common import answer, conversation, draw_effort, held_out, think, user

_LEXICON = []


def set_lexicon(encoding, rows):
    """English-looking words of the trained rows (single tokens), drawn for spelling; called once by the data pipeline."""
    _LEXICON.clear()
    for token in rows.ids:
        if token >= 199998:
            continue
        raw = encoding.decode_single_token_bytes(int(token))
        if re.fullmatch(rb" ?[A-Za-z]{3,12}", raw):
            _LEXICON.append(raw.decode())


def any_piece(rng):
    """A letter run that is one token, with or without its leading space."""
    return rng.choice(_LEXICON)


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
    quote = rng.choice(["{}", "{}", '"{}"', "'{}'", "**{}**", "`{}`"]).format(word)
    question = rng.choice([
        "How many letters are in the word {}?", "How many letters are in {}?", "How many letters does {} have?",
        "how many letters in {}", "Count the letters in {}.", "How many characters are in the word {}?",
        "Count the letters of the word {}, please.", "What is the number of letters in {}?", "Tell me how long the word {} is.",
    ]).format(quote)
    core = f"Spell {word}: {numbered(word)}. So {len(word)}."
    reply = rng.choice([f"The word {word} has {len(word)} letters.", f"There are {len(word)} letters in {word}.",
                        f"{word} has {len(word)} letters."])
    if len(word) == 1:
        reply = reply.replace("letters", "letter")
    return conversation(rng, [user(question), answer(think(rng, effort, "wants the number of letters", core), reply)],
                        effort=effort), {"kind": "number", "value": len(word)}


def count_one_letter(rng, held=False):
    word, effort = draw_word(rng, held), draw_effort(rng)
    lower = word.lower()
    letter = rng.choice(lower) if rng.random() < 0.9 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    total, marks = 0, []
    for char in word:
        if char.lower() == letter:
            total += 1
            marks.append(f"{char}{total}")
        else:
            marks.append(char)
    question = rng.choice(["How many {l}'s are in {w}?", "How many times does the letter {l} appear in {w}?",
                           "How many {l} are in the word {w}?", "Count the letter {l} in {w}."]).format(l=letter, w=word)
    core = f"Spell {word} and count {letter}: {' '.join(marks)}. So {total}."
    times = "time" if total == 1 else "times"
    return conversation(rng, [user(question), answer(think(rng, effort, "wants a letter counted", core),
                                                     f"The letter {letter} appears {total} {times} in {word}.")],
                        effort=effort), {"kind": "number", "value": total}


def spell(rng, held=False):
    word, effort = draw_word(rng, held), draw_effort(rng)
    question = rng.choice(["Spell {}.", "How do you spell {}?", "Spell the word {}, please.", "Write {} letter by letter."]).format(word)
    return conversation(rng, [user(question), answer(think(rng, effort, "wants a word spelled", f"Letters: {numbered(word)}."),
                                                     spelled(word, "-"))], effort=effort), {"kind": "text", "value": spelled(word, "-")}


def reverse_word(rng, held=False):
    word, effort = draw_word(rng, held, 10), draw_effort(rng)
    question = rng.choice(["Reverse the word {}.", "Write {} backwards.", "Spell {} backwards.", "What is {} reversed?"]).format(word)
    turned = word[::-1]
    core = f"{word}: {spelled(word)}. Backwards: {spelled(turned)}."
    dashed = "Spell" in question
    reply = spelled(turned, "-") if dashed else turned
    # A list is encoded piece by piece: letters one at a time, since nobody can predict the tokens of a reversed word.
    message = answer(think(rng, effort, "wants a word backwards", core), reply if dashed else list(turned))
    return conversation(rng, [user(question), message], effort=effort), {"kind": "text", "value": reply}


def drill(rng, held=False):
    """Several single tokens spelled in one answer: teaches the letters of every row."""
    pieces = [any_piece(rng) for _ in range(rng.randint(8, 22))]
    body = "\n".join(f"{p.strip()}: {numbered(p.strip()) if rng.random() < 0.7 else spelled(p.strip())}" for p in pieces)
    question = "Spell these words:" + "".join(p if p.startswith(" ") else f"\n{p}" for p in pieces)
    return conversation(rng, [user(question), answer("Spell each word.", body)], effort="low", instructions=None), None


def first_letters(rng, held=False):
    word, effort = draw_word(rng, held), draw_effort(rng)
    which, index = rng.choice([("first", 0), ("last", -1)])
    core = f"{word}: {spelled(word)}. The {which} is {word[index]}."
    return conversation(rng, [user(f"What is the {which} letter of {word}?"),
                              answer(think(rng, effort, f"wants the {which} letter", core), f"The {which} letter of {word} is {word[index]}.")],
                        effort=effort), {"kind": "text", "value": word[index]}
