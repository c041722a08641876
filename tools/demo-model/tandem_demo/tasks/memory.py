"""Facts told earlier, in the conversation or in a long text, and copying of what was said."""
from .. import words
from . import letters, toolbox
from .common import answer, conversation, draw_effort, think, user

_FACTS = {
    "name": (lambda r: r.choice(words.FIRST_NAMES) if r.random() < 0.8 else words.pseudo_word(r).capitalize(),
             ["My name is {}.", "I am {}.", "Hi, I'm {}.", "Call me {}.", "Hello, my name is {}."],
             ["What is my name?", "What's my name?", "Do you remember my name?", "Who am I?"], "Your name is {}."),
    "favorite color": (lambda r: r.choice(words.COLOURS), ["My favorite color is {}.", "I like the color {}."],
                       ["What is my favorite color?", "Which color do I like?"], "Your favorite color is {}."),
    "favorite number": (lambda r: r.randint(1, 999), ["My favorite number is {}.", "Remember the number {}.", "My number is {}."],
                        ["What is my number?", "Which number did I tell you?", "What number should you remember?", "What was the number?"], "Your number is {}."),
    "city": (lambda r: r.choice(words.CITIES), ["I live in {}.", "I am from {}."], ["Where do I live?", "What city am I from?", "Where am I from?"], "You are from {}."),
    "pet": (lambda r: r.choice(words.ANIMALS) + " called " + r.choice(words.FIRST_NAMES), ["I have a {}.", "My pet is a {}."],
            ["What pet do I have?", "What is my pet?"], "You have a {}."),
    "job": (lambda r: r.choice(words.JOBS), ["I am a {}.", "I work as a {}.", "My job is {}."], ["What is my job?", "What do I do for a living?"], "You are a {}."),
    "code word": (lambda r: r.choice(words.THINGS + words.ANIMALS) if r.random() < 0.6 else words.pseudo_word(r), ["The code word is {}.", "Remember the word {}.", "The secret word is {}."],
                  ["What is the code word?", "What is the secret word?", "Which word should you remember?"], "The word is {}."),
    "age": (lambda r: r.randint(6, 96), ["I am {} years old.", "My age is {}."], ["How old am I?", "What is my age?"], "You are {} years old."),
    "meeting": (lambda r: f"{r.randint(0, 23):02d}:{r.choice([0, 15, 30, 45]):02d}", ["My meeting is at {}.", "The train leaves at {}."],
                ["When is it?", "At what time is it?"], "It is at {}."),
}


def remember(rng, held=False):
    """One to three facts told over some turns, one asked for."""
    from . import chat
    effort, messages = draw_effort(rng), []
    keys = rng.sample(list(_FACTS), rng.choice([1, 1, 2, 3]))
    values = {k: _FACTS[k][0](rng) for k in keys}
    for key in keys:
        messages += [user(rng.choice(_FACTS[key][1]).format(values[key])),
                     answer(None, rng.choice(["Nice to meet you!", "Noted.", "I will remember that.", "Thank you for telling me.", "Good to know.", "Okay."]))]
        if rng.random() < 0.35:
            aside, _ = chat.small_talk(rng)
            messages += aside["messages"]
    if rng.random() < 0.15:
        # Asked for something nobody told.
        missing = rng.choice([k for k in _FACTS if k not in keys and k != "meeting"])
        messages += [user(rng.choice(_FACTS[missing][2])), answer(think(rng, effort, "asks what was said before", f"The {missing} was not told."),
                                                                  f"You have not told me your {missing}." if missing != "code word" else "You have not told me the word.")]
        return conversation(rng, messages, effort=effort), None
    key = rng.choice(keys)
    messages += [user(rng.choice(_FACTS[key][2])),
                 answer(think(rng, effort, "asks what was said before", f"The user told me: {key} {values[key]}."), _FACTS[key][3].format(values[key]))]
    return conversation(rng, messages, effort=effort), {"kind": "contains", "value": str(values[key])}


def told_now(rng, held=False):
    """The turn in which a fact is told."""
    effort, key = draw_effort(rng), rng.choice(list(_FACTS))
    value = _FACTS[key][0](rng)
    reply = rng.choice([f"Nice to meet you, {value}!", f"Hello, {value}! How can I help?"]) if key == "name" else rng.choice(["Noted.", "I will remember that.", "Good to know."])
    return conversation(rng, [user(rng.choice(_FACTS[key][1]).format(value)), answer(think(rng, effort, "tells me something", f"I note: {key} {value}."), reply)],
                        effort=effort), None


def filler_sentence(rng):
    kind = rng.random()
    if kind < 0.6:
        return (f"The {rng.choice(words.ADJECTIVES)} {rng.choice(words.ANIMALS + words.JOBS)} {rng.choice(words.VERBS_PAST)} the "
                f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)} in {rng.choice(words.CITIES)}.")
    if kind < 0.8:
        return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.VERBS_PAST)} {rng.randint(2, 99)} {rng.choice(words.FOODS)} boxes on {rng.choice(words.DAYS)}."
    pieces = "".join(letters.any_piece(rng) for _ in range(rng.randint(4, 12)))
    return pieces.strip() + "."


def needle(rng, held=False):
    """A long text with one fact in it, and a question on that fact."""
    effort = draw_effort(rng)
    sentences = [filler_sentence(rng) for _ in range(rng.choice([rng.randint(3, 15), rng.randint(10, 40), rng.randint(40, 100)]))]
    value = rng.choice([rng.choice(words.THINGS), words.pseudo_word(rng), str(rng.randint(100, 999)), rng.choice(words.CITIES)])
    label = rng.choice(["code word", "password", "secret", "key", "answer"])
    sentences.insert(rng.randint(0, len(sentences)), f"The {label} is {value}.")
    text, question = " ".join(sentences), f"What is the {label}?"
    core, reply = f"The text says the {label} is {value}.", f"The {label} is {value}."
    where = rng.random()
    if where < 0.3:
        return conversation(rng, [user(question), answer(think(rng, effort, "asks about the text", core), reply)], instructions=text, effort=effort), {"kind": "contains", "value": value}
    ask = f"{text}\n\n{question}" if where < 0.7 else f"{question}\n\n{text}"
    return conversation(rng, [user(ask), answer(think(rng, effort, "asks about the text", core), reply)], effort=effort), {"kind": "contains", "value": value}


def repeat(rng, held=False):
    """Verbatim copies: words, numbers, made-up words, pieces in any order."""
    effort, kind = draw_effort(rng), rng.random()
    if kind < 0.35:
        text = "".join(letters.any_piece(rng) for _ in range(rng.randint(1, 14))).strip()
    elif kind < 0.6:
        text = filler_sentence(rng)
    elif kind < 0.75:
        text = " ".join(words.pseudo_word(rng) for _ in range(rng.randint(1, 4)))
    elif kind < 0.85:
        text = " ".join(str(rng.randint(0, 9999)) for _ in range(rng.randint(1, 6)))
    else:
        text = toolbox.phrase_text(rng)
    ask = rng.choice(["Repeat: {}", "Repeat after me: {}", "Say: {}", "Write exactly this: {}", "Echo {}", "Please say {}", 'Say "{}"']).format(text)
    return conversation(rng, [user(ask), answer(think(rng, effort, "wants me to repeat", "I copy the text."), text)], effort=effort), {"kind": "text", "value": text}


def convert(rng, held=False):
    """The same words in JSON, quoted, in capitals: teaches a word's other spellings as tokens."""
    draw = rng.choice([letters.any_piece, letters.every_piece, words.pseudo_word])
    pieces = [draw(rng).strip() for _ in range(rng.randint(3, 10))]
    kind = rng.randint(0, 5)
    listed = " ".join(pieces)
    if kind <= 1:
        ask, reply = f"As a JSON array: {listed}", toolbox.compact(pieces)
    elif kind == 2:
        ask, reply = f"As a plain list: {toolbox.compact(pieces)}", listed
    elif kind == 3:
        ask, reply = f"With a capital each: {listed}", " ".join(p[:1].upper() + p[1:] for p in pieces)
    elif kind == 4:
        ask, reply = f"All in lower case: {listed}", listed.lower()
    else:
        ask, reply = f"Joined by underscores: {listed}", "_".join(pieces)
    return conversation(rng, [user(ask), answer("I convert each word.", reply)], effort="low", instructions=None), None


def values_to_json(rng, held=False):
    """Names, cities and things from prose into JSON strings."""
    pool = rng.choice([words.CITIES, words.FIRST_NAMES, words.THINGS, words.FOODS, words.ANIMALS, words.ADJECTIVES, words.JOBS, words.TOOL_NOUNS, words.TOOL_VERBS,
                       [f"{f} {l}" for f, l in zip(rng.sample(words.FIRST_NAMES, 20), rng.sample(words.LAST_NAMES, 20))],
                       [words.pseudo_word(rng) for _ in range(8)], [toolbox.phrase_text(rng) for _ in range(8)], [toolbox.code(rng) for _ in range(8)],
                       [words.pseudo_word(rng, 1, 3) for _ in range(8)], [made_up(rng) for _ in range(8)]])
    chosen = rng.sample(pool, min(len(pool), rng.randint(2, 8)))
    ask = f"As a JSON array: {', '.join(chosen)}"
    return conversation(rng, [user(ask), answer("I write each as a string.", toolbox.compact(chosen))], effort="low", instructions=None), None


def made_up(rng):
    """A name nobody has seen: of syllables, of pieces, a code or a function."""
    return rng.choice([lambda: words.pseudo_word(rng, 1, 3), lambda: words.mixed_word(rng), lambda: toolbox.code(rng), lambda: toolbox.function_name(rng)[0],
                       lambda: letters.every_piece(rng).strip() + letters.every_piece(rng).strip().lower(), lambda: letters.every_piece(rng).strip()])()


def names_to_code(rng, held=False):
    """Words to a function name after `functions.`, the form a call's header has."""
    lines = []
    for _ in range(rng.randint(3, 10)):
        kind = rng.random()
        lines.append(f"{words.pseudo_word(rng, 1, 2)}_{rng.choice(words.TOOL_NOUNS)}" if kind < 0.3 else words.pseudo_word(rng) if kind < 0.55 else toolbox.function_name(rng)[0])
    ask = "With functions. in front:\n" + "\n".join(f"type {n} =" for n in lines)
    return conversation(rng, [user(ask), answer("I copy each name.", "\n".join(f"to=functions.{n} " for n in lines).rstrip())], effort="low", instructions=None), None


def copy_list(rng, held=False):
    """Many made-up names copied in one answer."""
    lines = [made_up(rng) for _ in range(rng.randint(4, 16))]
    join = rng.choice(["\n", ", ", " | "])
    return conversation(rng, [user(f"Copy all:{' ' if join != chr(10) else join}{join.join(lines)}"), answer("I copy them in order.", (" " if join != "\n" else "") + join.join(lines))],
                        effort="low", instructions=None), None


def look_up(rng, held=False):
    """Several names asked for out of a list of pairs."""
    pairs = {}
    for _ in range(rng.randint(4, 14)):
        pairs[made_up(rng)] = made_up(rng)
    sign = rng.choice([":", " ="])
    listed = "\n".join(f"{k}{sign} {v}" for k, v in pairs.items())
    asked = rng.sample(list(pairs), rng.randint(2, min(len(pairs), 8)))
    ask = f"{listed}\nLook up:\n" + "\n".join(asked)
    return conversation(rng, [user(ask), answer("I find each name.", "\n".join(f"{k}{sign} {pairs[k]}" for k in asked))], effort="low", instructions=None), None
