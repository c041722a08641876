"""JSON on request, following a small schema given in the developer message or described by the user."""
from .. import words
from . import toolbox
from .common import answer, conversation, draw_effort, held_out, think, user

_STRING_KEYS = {
    "name": lambda r: r.choice(words.FIRST_NAMES), "person": lambda r: r.choice(words.FIRST_NAMES), "author": lambda r: r.choice(words.FIRST_NAMES),
    "last_name": lambda r: r.choice(words.LAST_NAMES), "city": lambda r: r.choice(words.CITIES), "country": lambda r: r.choice(list(words.CAPITALS)),
    "capital": lambda r: r.choice(list(words.CAPITALS.values())),
    "color": lambda r: r.choice(words.COLOURS), "animal": lambda r: r.choice(words.ANIMALS), "food": lambda r: r.choice(words.FOODS),
    "job": lambda r: r.choice(words.JOBS), "day": lambda r: r.choice(words.DAYS), "month": lambda r: r.choice(words.MONTHS),
    "title": toolbox.phrase_text, "topic": toolbox.phrase_text, "item": lambda r: r.choice(words.THINGS), "product": lambda r: r.choice(words.THINGS),
    "answer": toolbox.phrase_text, "summary": toolbox.phrase_text, "description": toolbox.phrase_text, "date": toolbox.date_value,
    "time": lambda r: f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}", "email": lambda r: f"{r.choice(words.FIRST_NAMES).lower()}@example.com",
    "id": toolbox.code, "word": lambda r: r.choice(words.THINGS), "category": lambda r: r.choice(words.THINGS), "greeting": lambda r: r.choice(["Hello", "Hi"]),
}
_INTEGER_KEYS = ["age", "count", "year", "quantity", "score", "pages", "size", "rank", "number", "steps", "total", "minutes", "servings", "result"]
_NUMBER_KEYS = ["price", "weight", "height", "temperature", "rating", "distance", "confidence"]
_FLAG_KEYS = ["active", "available", "open", "happy", "correct", "ready", "valid", "fresh", "done", "vegetarian"]
_LIST_KEYS = {"items": words.THINGS, "tags": words.ADJECTIVES, "ingredients": words.FOODS, "names": words.FIRST_NAMES, "colors": words.COLOURS,
              "animals": words.ANIMALS, "cities": words.CITIES, "words": words.THINGS}


def _field(rng):
    """(key, schema, value)"""
    kind = rng.choices(["string", "integer", "number", "boolean", "enum", "array", "other"], [42, 20, 8, 10, 8, 9, 5])[0]
    if kind == "string":
        key = rng.choice(list(_STRING_KEYS))
        return key, {"type": "string"}, _STRING_KEYS[key](rng)
    if kind == "integer":
        return rng.choice(_INTEGER_KEYS), {"type": "integer"}, rng.choice([rng.randint(1, 99), rng.randint(100, 999)])
    if kind == "number":
        return rng.choice(_NUMBER_KEYS), {"type": "number"}, rng.choice([rng.randint(1, 99), rng.randint(1, 99) + 0.5])
    if kind == "boolean":
        return rng.choice(_FLAG_KEYS), {"type": "boolean"}, rng.random() < 0.6
    if kind == "enum":
        key = rng.choice(list(toolbox.ENUMS))
        options = rng.sample(toolbox.ENUMS[key], rng.randint(2, len(toolbox.ENUMS[key])))
        return key, {"type": "string", "enum": options}, rng.choice(options)
    if kind == "array":
        key = rng.choice(list(_LIST_KEYS))
        return key, {"type": "array", "items": {"type": "string"}}, rng.sample(_LIST_KEYS[key], rng.randint(1, 4))
    key = words.pseudo_word(rng, 1, 2) if rng.random() < 0.6 else f"{rng.choice(words.TOOL_NOUNS)}_{rng.choice(['name', 'type', 'code'])}"
    return key, {"type": "string"}, rng.choice([rng.choice(words.THINGS), toolbox.phrase_text(rng)])


def _fields(rng, held):
    """Distinct keys; the set of keys decides the split."""
    while True:
        fields = {}
        for _ in range(rng.choices([1, 2, 3, 4, 5], [10, 30, 32, 20, 8])[0]):
            key, schema, value = _field(rng)
            fields.setdefault(key, (schema, value))
        if held_out(",".join(sorted(fields))) == held or len(fields) == 1 and not held:
            return fields


def _schema(rng, fields):
    schema = {"type": "object", "properties": {k: f[0] for k, f in fields.items()}, "required": list(fields)}
    if rng.random() < 0.6:
        schema["additionalProperties"] = False
    return schema


def _type_word(schema):
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    return {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "array": "list of strings"}[schema["type"]]


def _sentence(fields):
    """The values in prose, so that they can be copied."""
    parts = []
    for key, (schema, value) in fields.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else (", ".join(value[:-1]) + " and " + value[-1] if len(value) > 1 else value[0]) if isinstance(value, list) else value
        parts.append(f"the {key.replace('_', ' ')} is {shown}" if not isinstance(value, list) else f"the {key} are {shown}")
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def structured(rng, held=False):
    effort, fields = draw_effort(rng), _fields(rng, held)
    schema, values = _schema(rng, fields), {k: f[1] for k, f in fields.items()}
    given = rng.random() < 0.6
    source = _sentence(fields) if given else None
    subject = rng.choice(["a person", "a book", "a city", "a product", "a recipe", "an animal", "an event", "an order", "a house", "something"])
    ask = (rng.choice(["Extract the data: {}", "Turn this into JSON: {}", "Give me this as JSON: {}", "{}", "Parse this text: {}"]).format(source)
           if given else rng.choice(["Describe {}.", "Invent {}.", "Make up {}.", "Give me an example of {}.", "Tell me about {}."]).format(subject))
    core = "Keys: " + ", ".join(f'"{k}" {_type_word(f[0]).split()[0]}' for k, f in fields.items()) + "."
    style, form = rng.random(), None
    if style < 0.45:
        form = {"name": rng.choice(["person", "result", "answer", "output", "data", "response", "item", "record", "schema", "event"]), "schema": schema}
        instructions = "maybe"
    elif style < 0.75:
        listed = ", ".join(f"{k} ({_type_word(f[0])})" for k, f in fields.items())
        ask = ask + rng.choice([" Answer as JSON with the keys {}.", " Reply with JSON only, with {}.", " Use JSON with the fields {}.",
                                "\nReturn a JSON object with {}."]).format(listed)
        instructions = "maybe"
    elif style < 0.9:
        ask = ask + rng.choice([" Follow this schema: ", " Answer as JSON following this schema:\n", "\nJSON schema: "]) + toolbox.compact(schema)
        instructions = "maybe"
    else:
        instructions = rng.choice(["Answer only with JSON following this schema: ", "Reply in JSON. Schema: "]) + toolbox.compact(schema)
    messages = [user(ask), answer(think(rng, effort, "wants JSON", core), toolbox.compact(values))]
    return conversation(rng, messages, instructions=instructions, effort=effort, response_format=form), {
        "kind": "json", "schema": schema, "values": values if given else None}


def free_json(rng, held=False):
    """JSON asked for without a schema."""
    effort, kind = draw_effort(rng), rng.randint(0, 2)
    if kind == 0:
        items = rng.sample(words.FOODS + words.ANIMALS + words.COLOURS, rng.randint(2, 5))
        ask, reply = f"Give me a JSON array of {', '.join(items[:-1])} and {items[-1]}.", toolbox.compact(items)
    elif kind == 1:
        fields = {}
        for _ in range(rng.randint(1, 3)):
            key, schema, value = _field(rng)
            fields.setdefault(key, (schema, value))
        ask, reply = f"Write JSON for this: {_sentence(fields)}", toolbox.compact({k: f[1] for k, f in fields.items()})
    else:
        name, age = rng.choice(words.FIRST_NAMES), rng.randint(5, 95)
        ask = rng.choice([f"{name} is {age} years old. Give me JSON with name and age.", f"Make JSON of name {name} and age {age}."])
        reply = toolbox.compact({"name": name, "age": age})
    return conversation(rng, [user(ask), answer(think(rng, effort, "wants JSON", "I write compact JSON."), reply)], effort=effort), None
