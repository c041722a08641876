"""The evaluation set and how an answer is scored. Used on the device during training and over HTTP by evaluate.py."""
import json
import random
import re

from .tasks import chat, letters, memory, numbers, structured, tools

# (task, generator, target or None): the targets are those of the project's issue on the demo model.
TASKS = [
    ("tool_call", tools.one_call, 0.90), ("tool_call_known", tools.known_call, None), ("tool_no_call", tools.no_call, None), ("tool_after_history", tools.after_history, None),
    ("tool_answer", tools.known_call, None), ("arithmetic", numbers.arithmetic, 0.95), ("letter_count", letters.count_letters, 0.90), ("json_schema", structured.structured, 0.95),
    ("json_values", structured.structured, None), ("reverse", letters.reverse_word, None), ("sort_numbers", numbers.sort_numbers, None), ("sort_words", numbers.sort_words, None), ("days", numbers.days, None),
    ("units", numbers.units, None), ("remember", memory.remember, None), ("needle", memory.needle, None), ("repeat", memory.repeat, None),
    ("one_word", chat.one_word, None), ("styled", chat.styled, None), ("about_tandem", chat.about, None),
]
TARGETS = {name: target for name, _, target in TASKS} | {"well_formed": 0.995, "well_formed_offered": None}


def examples(task, count, seed=20260101):
    """`count` held-out (conversation to continue, what to expect of the answer)."""
    generator = next(g for name, g, _ in TASKS if name == task)
    rng, made = random.Random(f"evaluation-{task}-{seed}"), []
    while len(made) < count:
        conversation, check = generator(rng, True)
        if check is None or task == "json_values" and check["values"] is None:
            continue
        check = dict(check)
        if task == "json_values":
            check["kind"] = "json_values"
        if task == "tool_answer":
            asked = conversation["messages"][:-1]
            check = {"kind": "text", "value": conversation["messages"][-1]["content"]}
        else:
            asked = conversation["messages"][:_last_user(conversation) + 1]
        made.append((conversation | {"messages": asked}, check))
    return made


def _last_user(conversation):
    return max(i for i, m in enumerate(conversation["messages"]) if m["role"] == "user")


def _matches(value, schema):
    """Enough of JSON schema for the schemas we generate."""
    kind = schema.get("type")
    if kind == "object":
        if not isinstance(value, dict) or any(key not in value for key in schema.get("required", [])):
            return False
        known = schema.get("properties", {})
        if schema.get("additionalProperties") is False and any(key not in known for key in value):
            return False
        return all(_matches(v, known[k]) for k, v in value.items() if k in known)
    if kind == "array":
        return isinstance(value, list) and all(_matches(v, schema.get("items", {})) for v in value)
    right = {"string": lambda v: isinstance(v, str), "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
             "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "boolean": lambda v: isinstance(v, bool)}
    return right.get(kind, lambda v: True)(value) and ("enum" not in schema or value in schema["enum"])


def _json(text):
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def correct(check, final, call):
    """Whether an answer is right; `final` is the text of the final message or None, `call` is (name, arguments text) or None."""
    kind = check["kind"]
    if kind == "call":
        return call is not None and call[0] == check["name"] and _json(call[1]) == check["arguments"]
    if kind == "no_call":
        return call is None and final is not None
    if final is None or call is not None:
        return False
    if kind == "number":
        # The answer may repeat the question's own digits ("12 + 7 = 19"), so the last number counts; in "X has 5 letters" it is the only one.
        found = re.findall(r"(?<!\w)-?\d+", final)
        return bool(found) and int(found[-1]) == check["value"]
    if kind == "json":
        return (value := _json(final)) is not None and _matches(value, check["schema"])
    if kind == "json_values":
        return _json(final) == check["values"]
    if kind == "contains":
        return str(check["value"]).lower() in final.lower()
    if kind == "any_of":
        return final in check["value"]
    return check["value"] == final or check["value"].strip(".") in final


def well_formedness_prompts(count, seed=20260102):
    """Prompts of all kinds, held-out where a kind has a split, for sampling at temperature 1."""
    rng, made = random.Random(f"well-formed-{seed}"), []
    while len(made) < count:
        name, generator, _ = rng.choice(TASKS)
        conversation, _ = generator(rng, True)
        made.append(conversation | {"messages": conversation["messages"][:_last_user(conversation) + 1]})
    return made
