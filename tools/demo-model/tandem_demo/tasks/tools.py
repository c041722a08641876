"""Tool use: one call, several in a row, none that fits, and the answer from the result."""
from .. import words
from . import known_tools, toolbox
from .common import answer, call, conversation, draw_effort, think, tool_result, user


def _result(rng):
    """(text of a tool's result, the answer that tells it)"""
    kind = rng.random()
    if kind < 0.55:
        keys = rng.sample(["temperature", "price", "total", "status", "name", "city", "date", "count", "balance", "time", "id", "title",
                           "color", "level", "distance", "condition", "owner", "value", "score"], rng.randint(1, 3))
        values = {}
        for key in keys:
            values[key] = _value(rng, key)
        said = [f"the {k} is {str(v).lower() if isinstance(v, bool) else v}" for k, v in values.items()]
        joined = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
        text = toolbox.compact(values) if rng.random() < 0.6 else toolbox.json.dumps(values)
        return text, joined[0].upper() + joined[1:] + "."
    if kind < 0.7:
        return rng.choice(['{"status":"ok"}', '{"success": true}', "ok", "done", '{"ok":true}', '{"status": "success"}']), rng.choice(["Done.", "It is done."])
    if kind < 0.78:
        problem = rng.choice(["not found", "no access", "timeout", "invalid value", "not available"])
        text = rng.choice(['{{"error":"{}"}}', '{{"error": "{}"}}', "error: {}"]).format(problem)
        return text, f"The tool reported an error: {problem}."
    if kind < 0.9:
        items = rng.sample(words.FOODS + words.THINGS + words.FIRST_NAMES, rng.randint(2, 4))
        text = toolbox.compact(items) if rng.random() < 0.5 else toolbox.compact({"results": items})
        return text, f"I found: {', '.join(items)}."
    text = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)} {rng.randint(1, 99)}"
    return text, f"The result is: {text}."


def _value(rng, key):
    if key in ("temperature", "count", "level", "score", "distance", "total", "price", "balance", "value"):
        return rng.choice([rng.randint(1, 99), rng.randint(100, 999), rng.randint(0, 99) + 0.5])
    if key == "name" or key == "owner":
        return rng.choice(words.FIRST_NAMES)
    if key == "city":
        return rng.choice(words.CITIES)
    if key == "date":
        return toolbox.date_value(rng)
    if key == "time":
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if key == "id":
        return toolbox.code(rng)
    if key == "color":
        return rng.choice(words.COLOURS)
    if key == "status":
        return rng.choice(["open", "closed", "pending", "ready", "sent", "active"])
    if key == "condition":
        return rng.choice(["sunny", "rainy", "cloudy", "windy"])
    return toolbox.phrase_text(rng)


def _plan(rng, effort, name, given, asked, wanted=None, left=""):
    """The thinking before a call. Names stand as in the definition and values as in the request, so that their tokens are the same."""
    core = f"To {wanted}: call {name}" if wanted else f"Call {name}"
    core += " with" + "".join(f"\n{key}: {_plain(value, asked)}" for key, value in given.items()) if given else ", no arguments."
    return think(rng, effort, rng.choice(["wants something done", "asks for something"]), core + left,
                 check="The other tools do not fit." if rng.random() < 0.5 else "All arguments come from the request.")


def _plain(value, asked):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(value)
    return f'"{value}"' if f'"{value}"' in asked else str(value)


def _request(rng, drawn):
    """The user's sentence, and what it wants in two words where it says so."""
    text, said = toolbox.request(rng, drawn)
    return text, f"{drawn['verb']} {drawn['noun']}" if said else None


def _draw_list(rng, held, count):
    """Distinct tools; some share a verb or a noun, so that the name has to be read."""
    drawn, busy = [], set()
    for _ in range(count):
        tool = toolbox.draw_tool(rng, held, busy)
        if all(tool["tool"]["name"] != other["tool"]["name"] for other in drawn):
            drawn.append(tool)
            busy.add((tool["verb"], tool["noun"]))
    return drawn


def _check(name, given):
    return {"kind": "call", "name": name, "arguments": given}


def one_call(rng, held=False):
    effort = draw_effort(rng)
    drawn = _draw_list(rng, held, rng.choices([1, 2, 3, 4, 5, 6, 8], [12, 20, 22, 18, 14, 10, 4])[0])
    chosen = rng.choice(drawn)
    tools, name, given = [d["tool"] for d in drawn], chosen["tool"]["name"], toolbox.arguments(chosen)
    result, reply = _result(rng)
    text, wanted = _request(rng, chosen)
    messages = [user(text), call(_plan(rng, effort, name, given, text, wanted), name, toolbox.compact(given)), tool_result(name, result),
                answer(think(rng, effort, "gets the result", "The tool has answered."), reply)]
    return conversation(rng, messages, tools=tools, effort=effort), _check(name, given)


def known_call(rng, held=False):
    effort = draw_effort(rng)
    tool, given, text, result, reply = known_tools.draw(rng)
    others = [known_tools.draw(rng)[0] for _ in range(rng.choice([0, 0, 1, 2, 3]))] if rng.random() < 0.7 else [d["tool"] for d in _draw_list(rng, held, 3)]
    tools = [tool]
    for other in others:
        if all(other["name"] != t["name"] and other["description"] != t["description"] for t in tools) and not _rivals(tool, other):
            tools.append(other)
    rng.shuffle(tools)
    result_text = toolbox.compact(result) if rng.random() < 0.6 else toolbox.json.dumps(result)
    messages = [user(text), call(_plan(rng, effort, tool["name"], given, text), tool["name"], toolbox.compact(given)), tool_result(tool["name"], result_text),
                answer(think(rng, effort, "gets the result", "The tool has answered."), reply)]
    return conversation(rng, messages, tools=tools, effort=effort), _check(tool["name"], given)


def _rivals(tool, other):
    """Two tools one request could mean."""
    groups = [("weather",), ("time",), ("add", "subtract", "multiply", "calcul", "eval", "math"), ("search", "find", "look"), ("mail", "message"), ("stock", "quote"),
              ("read", "open", "cat"), ("timer",), ("light",), ("flight",)]
    return any(any(w in tool["name"].lower() for w in group) and any(w in other["name"].lower() for w in group) for group in groups)


def several_calls(rng, held=False):
    """Two or three requests in one message, called one after the other."""
    effort, messages, answers = draw_effort(rng), [], []
    if rng.random() < 0.4:
        tool = None
        cities = rng.sample(words.CITIES, rng.choice([2, 2, 3]))
        while tool is None or len(tool["parameters"]["properties"]) != 1:
            tool, given, text, result, reply = known_tools._weather(rng) if rng.random() < 0.6 else known_tools._time(rng)
        key = next(iter(given))
        old = given[key]
        listed = ", ".join(cities[:-1]) + " and " + cities[-1]
        messages.append(user(text.replace(old, listed)))
        tools, name = [tool], tool["name"]
        for i, city in enumerate(cities):
            fresh = None
            while fresh is None or set(fresh[3]) != set(result):
                fresh = (known_tools._weather if "temperature" in result else known_tools._time)(rng)
            left = f"\nThen {cities[i + 1]}." if i + 1 < len(cities) else "\nThat is the last one."
            messages.append(call(_plan(rng, effort, name, {key: city}, "", left=left), name, toolbox.compact({key: city})))
            messages.append(tool_result(name, toolbox.compact(fresh[3])))
            answers.append(fresh[4].replace(fresh[1][next(iter(fresh[1]))], city))
        check = _check(name, {key: cities[0]})
    else:
        drawn = _draw_list(rng, held, rng.randint(2, 5))
        picked = rng.sample(drawn, min(len(drawn), 2))
        tools = [d["tool"] for d in drawn]
        requests = [_request(rng, d) for d in picked]
        messages.append(user(rng.choice([" Then ", " ", "\n", " After that: "]).join(text for text, _ in requests)))
        for i, d in enumerate(picked):
            name, given = d["tool"]["name"], toolbox.arguments(d)
            left = f"\nThen {picked[i + 1]['tool']['name']}." if i + 1 < len(picked) else "\nThat is the last one."
            result, reply = _result(rng)
            messages.append(call(_plan(rng, effort, name, given, requests[i][0], requests[i][1], left), name, toolbox.compact(given)))
            messages.append(tool_result(name, result))
            answers.append(reply)
        check = _check(picked[0]["tool"]["name"], toolbox.arguments(picked[0]))
    messages.append(answer(think(rng, effort, "gets the results", "All tools have answered."), " ".join(answers)))
    return conversation(rng, messages, tools=tools, effort=effort), check


def no_call(rng, held=False, other=None):
    """Tools are there, but the request fits none of them."""
    effort = draw_effort(rng)
    drawn = _draw_list(rng, held, rng.randint(1, 5))
    busy = {(d["verb"], d["noun"]) for d in drawn} | {(d["verb"], None) for d in drawn} | {(None, d["noun"]) for d in drawn}
    while True:
        outside = toolbox.draw_tool(rng, held)
        if not {(outside["verb"], outside["noun"]), (outside["verb"], None), (None, outside["noun"])} & busy:
            break
    text, wanted = _request(rng, outside)
    while outside["tool"]["name"] in text:
        text, wanted = _request(rng, outside)
    core = f"To {wanted}: no tool fits."
    reply = rng.choice(["I have no tool for that.", "None of my tools can do that."])
    messages = [user(text), answer(think(rng, effort, "wants something done", core), reply)]
    return conversation(rng, messages, tools=[d["tool"] for d in drawn], effort=effort), {"kind": "no_call"}


def list_tools(rng, held=False):
    """What tools there are."""
    effort, drawn = draw_effort(rng), _draw_list(rng, held, rng.randint(1, 5))
    names = [d["tool"]["name"] for d in drawn]
    text = rng.choice(["Which tools do you have?", "What tools can you use?", "List your tools.", "What functions do you have?"])
    reply = f"I can use {', '.join(names[:-1])} and {names[-1]}." if len(names) > 1 else f"I can use {names[0]}."
    messages = [user(text), answer(think(rng, effort, "asks for my tools", "I read the names in the list."), reply)]
    return conversation(rng, messages, tools=[d["tool"] for d in drawn], effort=effort), None


def with_tools(rng, plain, held=False):
    """An ordinary conversation while tools are offered: answered without a call."""
    conv, check = plain(rng, held)
    conv["tools"] = [d["tool"] for d in _draw_list(rng, held, rng.randint(1, 5))]
    return conv, check


def after_history(rng, held=False):
    """A second request in a conversation that already holds a finished call."""
    first, _ = (one_call if rng.random() < 0.5 else known_call)(rng, held)
    drawn = [d for d in _draw_list(rng, held, 2)]
    chosen = drawn[0]
    names = {t["name"] for t in first["tools"]}
    if names & {d["tool"]["name"] for d in drawn}:
        return first, None
    first["tools"] = first["tools"] + [d["tool"] for d in drawn]
    name, given = chosen["tool"]["name"], toolbox.arguments(chosen)
    result, reply = _result(rng)
    text, wanted = _request(rng, chosen)
    first["messages"] += [user(text), call(_plan(rng, first["effort"], name, given, text, wanted), name, toolbox.compact(given)),
                          tool_result(name, result), answer(think(rng, first["effort"], "gets the result", "The tool has answered."), reply)]
    return first, _check(name, given)
