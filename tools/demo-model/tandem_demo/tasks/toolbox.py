"""Function definitions that nobody has seen before: names, parameters, and the request that fits them."""
import json

from .. import words
from .common import held_out

PERSON_NAMES = ["name", "person", "user", "customer", "recipient", "employee", "contact", "owner", "author", "guest", "to", "assignee"]
CITY_NAMES = ["city", "location", "place", "destination", "town", "origin", "region", "target_city", "city_name"]
DATE_NAMES = ["date", "day", "start_date", "due_date", "end_date", "deadline", "when"]
TIME_NAMES = ["time", "start_time", "at", "hour", "alarm_time"]
COUNT_NAMES = ["count", "quantity", "amount", "limit", "days", "minutes", "number", "max_results", "page", "level", "size", "hours",
               "seconds", "seats", "guests_count", "top_k", "volume", "age", "x", "y", "n", "a", "b", "width", "height", "duration"]
PRICE_NAMES = ["price", "weight", "distance", "budget", "total", "rate", "value", "temperature"]
TEXT_NAMES = ["query", "text", "title", "message", "topic", "subject", "note", "body", "content", "keyword", "description", "label", "item",
              "product", "term", "comment"]
ID_NAMES = ["id", "order_id", "code", "user_id", "ticket_id", "item_id", "reference", "account", "key", "number_plate"]
FLAG_NAMES = ["urgent", "verbose", "public", "recursive", "notify", "confirmed", "dry_run", "express", "silent", "force"]
ENUMS = {
    "unit": ["celsius", "fahrenheit"], "units": ["metric", "imperial"], "priority": ["low", "medium", "high"], "color": words.COLOURS[:6],
    "size_class": ["small", "medium", "large"], "status": ["open", "closed", "pending"], "format": ["json", "csv", "xml"],
    "language": ["English", "French", "German", "Spanish"], "mode": ["fast", "slow", "auto"], "order": ["asc", "desc"],
    "direction": ["north", "south", "east", "west"], "meal": ["breakfast", "lunch", "dinner"], "class": ["economy", "business", "first"],
    "currency": ["USD", "EUR", "GBP"], "level_name": ["debug", "info", "error"],
}
NOTES = {
    "city": ["The city", "City name", "The name of the city", "The city, e.g. Paris", "Where"],
    "person": ["The name of the person", "Who it is for", "A person", "First name"],
    "date": ["The date", "Date as YYYY-MM-DD", "The day", "When it happens"],
    "time": ["The time", "Time as HH:MM", "At what time"],
    "count": ["How many", "A whole number", "The number to use", "An integer"],
    "price": ["A number", "The value", "As a decimal number"],
    "text": ["The text", "What to look for", "Free text", "A short text"],
    "id": ["The identifier", "The id", "A code such as A123"],
    "flag": ["Whether it is so", "Set to true if wanted", "true or false"],
    "enum": ["One of the choices", "Which one"],
    "list": ["A list", "Several values"],
}


def phrase_text(rng):
    """One to four words, as a search text or a title would be."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(words.THINGS + words.FOODS + words.ANIMALS)
    if kind < 0.65:
        return f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS + words.ANIMALS)}"
    if kind < 0.75:
        return f"{rng.choice(words.TOOL_VERBS)} the {rng.choice(words.TOOL_NOUNS)}"
    if kind < 0.87:
        return f"{rng.choice(words.FOODS)} and {rng.choice(words.FOODS)}"
    if kind < 0.95:
        return f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.FOODS)} with {rng.choice(words.FOODS)}"
    return words.pseudo_word(rng)


def code(rng):
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(words.ID_PREFIXES) + str(rng.randint(10, 9999))
    if kind < 0.6:
        return f"{rng.choice(words.ID_PREFIXES)}-{rng.randint(100, 999)}"
    if kind < 0.8:
        return str(rng.randint(100, 99999))
    return words.pseudo_word(rng) + str(rng.randint(1, 99))


def date_value(rng):
    kind = rng.random()
    if kind < 0.5:
        return f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if kind < 0.8:
        return rng.choice(words.DAYS)
    return rng.choice(["today", "tomorrow", f"{rng.choice(words.MONTHS)} {rng.randint(1, 28)}"])


def _named(rng, options):
    return rng.choice(options) if rng.random() < 0.9 else rng.choice([words.pseudo_word(rng, 1, 2), f"{rng.choice(words.TOOL_NOUNS)}_name"])


def _say(rng, name, value, natural):
    """How the request mentions a value: by a preposition, or with the name of the parameter."""
    spoken = name.replace("_", " ")
    if natural and rng.random() < 0.7:
        return rng.choice(natural).format(value)
    return rng.choice(["with {n} {v}", "{n} {v}", "with {n} set to {v}", "using {n} {v}", "{n}: {v}", "{n} = {v}", "and {n} {v}",
                       "the {n} is {v}"]).format(n=rng.choice([spoken, name]), v=value)


def draw_parameter(rng):
    """(name, schema, value, phrase, kind)"""
    kind = rng.choices(["city", "person", "date", "time", "count", "price", "text", "id", "flag", "enum", "list"],
                       [14, 12, 8, 7, 18, 6, 18, 9, 5, 12, 3])[0]
    schema = {"type": "string"}
    if kind == "city":
        name, value = _named(rng, CITY_NAMES), rng.choice(words.CITIES)
        phrase = _say(rng, name, value, ["in {}", "for {}", "to {}", "from {}", "near {}", "at {}"])
    elif kind == "person":
        name, value = _named(rng, PERSON_NAMES), rng.choice(words.FIRST_NAMES)
        if rng.random() < 0.25:
            value += " " + rng.choice(words.LAST_NAMES)
        phrase = _say(rng, name, value, ["for {}", "to {}", "of {}", "from {}", "by {}"])
    elif kind == "date":
        name, value = _named(rng, DATE_NAMES), date_value(rng)
        if value in ("today", "tomorrow"):
            phrase = _say(rng, name, value, ["{}", "for {}"])
        else:
            phrase = _say(rng, name, value, ["on {}", "for {}"])
    elif kind == "time":
        name, value = _named(rng, TIME_NAMES), f"{rng.randint(0, 23):02d}:{rng.choice([0, 15, 30, 45, rng.randint(0, 59)]):02d}"
        phrase = _say(rng, name, value, ["at {}", "for {}"])
    elif kind == "count":
        name, value = _named(rng, COUNT_NAMES), rng.choice([rng.randint(1, 12), rng.randint(1, 100), rng.randint(100, 999)])
        schema = {"type": rng.choice(["integer", "integer", "number"])}
        natural = ["{}" + f" {name.replace('_', ' ')}"] if name in ("days", "minutes", "hours", "seconds", "seats") else None
        phrase = _say(rng, name, value, natural)
    elif kind == "price":
        name, value = _named(rng, PRICE_NAMES), rng.choice([rng.randint(1, 500), rng.randint(1, 99) + rng.choice([0.5, 0.25, 0.75])])
        schema = {"type": "number"}
        phrase = _say(rng, name, value, None)
    elif kind == "text":
        name, value = _named(rng, TEXT_NAMES), phrase_text(rng)
        phrase = _say(rng, name, value, ["about {}", "for {}", "saying {}"]) if rng.random() < 0.4 else _say(rng, name, f'"{value}"', ['about "{}"'.replace('"{}"', "{}"), "for {}", "with the text {}", "{}"])
    elif kind == "id":
        name, value = _named(rng, ID_NAMES), code(rng)
        phrase = _say(rng, name, value, ["{}", "for {}", "number {}", "with id {}"])
    elif kind == "flag":
        name, value = rng.choice(FLAG_NAMES), rng.random() < 0.75
        schema = {"type": "boolean"}
        spoken = name.replace("_", " ")
        phrase = f"with {spoken} set to {'true' if value else 'false'}" if rng.random() < 0.6 or not value else f"and make it {spoken}"
    elif kind == "enum":
        name = rng.choice(list(ENUMS))
        value = rng.choice(ENUMS[name])
        schema = {"type": "string", "enum": ENUMS[name]}
        phrase = _say(rng, name, value, ["in {}", "with {}", "{}"])
    else:
        name, value = rng.choice(["tags", "items", "names", "labels"]), rng.sample(words.FOODS + words.THINGS, rng.randint(2, 3))
        schema = {"type": "array", "items": {"type": "string"}}
        shown = ", ".join(value[:-1]) + " and " + value[-1]
        phrase = _say(rng, name, shown, None)
    schema = dict(schema)
    if rng.random() < 0.6:
        schema["description"] = rng.choice(NOTES[kind])
    return name, schema, value, phrase, kind


def function_name(rng):
    """(name, verb, noun); verb and noun may be only in the description where the name says nothing."""
    verb, noun = rng.choice(words.TOOL_VERBS), rng.choice(words.TOOL_NOUNS)
    kind = rng.random()
    if kind < 0.6:
        name = f"{verb}_{noun}"
    elif kind < 0.72:
        name = f"{verb}{noun.capitalize()}"
    elif kind < 0.78:
        name = f"{noun}_{verb}"
    elif kind < 0.84:
        name = f"{verb}_{rng.choice(words.ADJECTIVES)}_{noun}"
    elif kind < 0.88:
        name = f"{rng.choice(words.THINGS)}_{verb}_{noun}"
    elif kind < 0.95:
        name = f"{words.pseudo_word(rng, 1, 2)}_{noun}"
    else:
        name = words.pseudo_word(rng)
    return name, verb, noun


def describe(rng, verb, noun):
    third = verb + ("es" if verb.endswith(("s", "sh", "ch")) else "s")
    if verb.endswith("y") and verb[-2] not in "aeiou":
        third = verb[:-1] + "ies"
    article = rng.choice(["the", "a", "one"]) if not noun.startswith(tuple("aeiou")) else rng.choice(["the", "an"])
    tail = rng.choice(["", "", "", " of the user", " in the system", " by its details", " for someone", " and returns the result"])
    return rng.choice([f"{third.capitalize()} {article} {noun}{tail}.", f"{verb.capitalize()} {article} {noun}{tail}",
                       f"Use this to {verb} {article} {noun}{tail}."])


def _unmistakable(rng, parameter, parameters):
    """Where two parameters take values of one kind, the request names each by its parameter."""
    name, schema, value, phrase, kind = parameter
    if kind in ("flag", "enum") or sum(p[4] == kind or {p[4], kind} <= {"count", "price"} for p in parameters) < 2:
        return parameter
    shown = ", ".join(value[:-1]) + " and " + value[-1] if kind == "list" else f'"{value}"' if kind == "text" and '"' in phrase else value
    return name, schema, value, _say(rng, name, shown, None), kind


def draw_tool(rng, held, busy=()):
    """A function and one request that fits it. `busy` holds (verb, noun) pairs that other tools of the list already mean."""
    while True:
        name, verb, noun = function_name(rng)
        if held_out(name) == held and (verb, noun) not in busy:
            break
    parameters, taken = [], set()
    for _ in range(rng.choices([0, 1, 2, 3, 4], [6, 32, 34, 20, 8])[0]):
        parameter = draw_parameter(rng)
        if parameter[0] not in taken:
            taken.add(parameter[0])
            parameters.append(parameter)
    parameters = [_unmistakable(rng, p, parameters) for p in parameters]
    required = [p[0] for p in parameters if rng.random() < 0.75]
    given = [p for p in parameters if p[0] in required or rng.random() < 0.4]
    tool = {"name": name, "description": describe(rng, verb, noun),
            "parameters": {"type": "object", "properties": {p[0]: p[1] for p in parameters}, "required": required}}
    if not parameters and rng.random() < 0.5:
        tool["parameters"] = None
    return {"tool": tool, "verb": verb, "noun": noun, "given": given, "named": name.startswith(verb) or verb in name and noun in name}


def request(rng, drawn):
    """The user's sentence, and whether it says the verb and the noun (else it names the function)."""
    verb, noun = drawn["verb"], drawn["noun"]
    article = rng.choice(["the", "the", "my", "a", ""])
    if article == "a" and noun[0] in "aeiou":
        article = "an"
    said = base = f"{verb} {article} {noun}".replace("  ", " ")
    roll = rng.random()
    name = drawn["tool"]["name"]
    if roll < 0.12:
        base = rng.choice([f"call {name}", f"use {name}", f"run {name}", f"use the {name} tool", f"use {name} to {base}"])
    phrases = [p[3] for p in drawn["given"]]
    if rng.random() < 0.4:
        rng.shuffle(phrases)
    text = base + "".join((", " if p.startswith(("the ", "and ")) or ":" in p or "=" in p or rng.random() < 0.15 else " ") + p for p in phrases)
    return _sentence(rng, text), said in base


def _sentence(rng, text):
    style = rng.random()
    if style < 0.35:
        return text[0].upper() + text[1:] + rng.choice([".", ".", ""])
    if style < 0.6:
        return rng.choice(["Please ", "please "]) + text + rng.choice([".", ""])
    if style < 0.8:
        return rng.choice(["Can you ", "Could you ", "Would you "]) + text + "?"
    return rng.choice(["I want to ", "I need to ", "I would like to ", "Help me ", "Let's "]) + text + "."


def arguments(drawn):
    """In the order of the definition."""
    order = list((drawn["tool"]["parameters"] or {}).get("properties", {}))
    return {name: next(p[2] for p in drawn["given"] if p[0] == name) for name in order if any(p[0] == name for p in drawn["given"])}


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
