"""Functions people try first, with requests as people put them. Names vary, so no name is learnt by heart."""
from .. import words
from . import toolbox


def _tool(name, description, *fields):
    properties = {}
    for field in fields:
        schema = {"type": field[1]}
        if len(field) > 2 and field[2]:
            schema["description"] = field[2]
        if len(field) > 3:
            schema["enum"] = field[3]
        properties[field[0]] = schema
    return {"name": name, "description": description,
            "parameters": {"type": "object", "properties": properties, "required": [fields[0][0]] if fields else []}}


def _weather(rng):
    key, city = rng.choice(["city", "location"]), rng.choice(words.CITIES)
    name = rng.choice(["get_weather", "get_current_weather", "weather", "current_weather", "getWeather", "lookup_weather", "fetch_weather"])
    fields = [(key, "string", rng.choice(["The city", "City name", "The city and state, e.g. San Francisco, CA", None]))]
    given = {key: city}
    text = rng.choice(["What is the weather in {}?", "What's the weather like in {}?", "How is the weather in {} today?", "Weather in {}?",
                       "Is it raining in {}?", "Tell me the weather in {}.", "what is the weather in {}", "Is it cold in {}?"]).format(city)
    if rng.random() < 0.35:
        unit_key = rng.choice(["unit", "format"])
        fields.append((unit_key, "string", None, ["celsius", "fahrenheit"]))
        if rng.random() < 0.5:
            given[unit_key] = rng.choice(["celsius", "fahrenheit"])
            text = text.rstrip("?.") + f" in {given[unit_key]}" + ("." if text.startswith("Tell") else "?")
    result = {"temperature": rng.randint(-9, 38), "condition": rng.choice(["sunny", "rainy", "cloudy", "windy", "snowy", "clear"])}
    reply = f"It is {result['temperature']} degrees and {result['condition']} in {city}."
    return _tool(name, rng.choice(["Get the current weather for a city.", "Gets the weather", "Gets the current weather in the provided location.",
                                   "Get weather"]), *fields), given, text, result, reply


def _time(rng):
    key, city = rng.choice(["city", "location", "timezone", "place"]), rng.choice(words.CITIES)
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    text = rng.choice(["What time is it in {}?", "What's the time in {}?", "Time in {}?", "Tell me the time in {}."]).format(city)
    return (_tool(rng.choice(["get_time", "get_current_time", "current_time", "time_in", "clock"]), "Get the current time in a city.", (key, "string")),
            {key: city}, text, {"time": clock}, f"It is {clock} in {city}.")


def _sum(rng):
    a, b = rng.randint(1, 999), rng.randint(1, 999)
    sign, verb, name, value = rng.choice([("+", "plus", "add", a + b), ("-", "minus", "subtract", a - b), ("*", "times", "multiply", a * b)])
    first, second = rng.choice([("a", "b"), ("x", "y"), ("left", "right"), ("first", "second")])
    text = rng.choice([f"What is {a} {sign} {b}?", f"What is {a} {verb} {b}?", f"Use the tool: {a} {sign} {b}", f"Compute {a} {verb} {b}."])
    tool = _tool(rng.choice([name, f"{name}_numbers", f"{name}_two"]), f"{name.capitalize()} two numbers.", (first, "number"), (second, "number"))
    return tool, {first: a, second: b}, text, rng.choice([{"result": value}, {"answer": value}]), f"{a} {sign} {b} is {value}."


def _calculator(rng):
    expression = f"{rng.randint(2, 999)}{rng.choice('+-*/')}{rng.randint(2, 99)}"
    value = rng.randint(1, 9999)
    text = rng.choice([f"What is {expression}?", f"Calculate {expression}", f"Compute {expression} with the calculator."])
    tool = _tool(rng.choice(["calculator", "calculate", "evaluate", "math_eval"]), "Evaluate an arithmetic expression.", ("expression", "string"))
    return tool, {"expression": expression}, text, {"result": value}, f"{expression} is {value}."


def _search(rng):
    key, topic = rng.choice(["query", "q", "text"]), toolbox.phrase_text(rng)
    text = rng.choice(["Search for {}.", "Search the web for {}.", "Look up {}.", "Find something about {}."]).format(topic)
    title = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)} {rng.choice(['guide', 'store', 'news', 'page'])}"
    return (_tool(rng.choice(["search", "web_search", "search_web", "google_search", "find_pages"]), "Search the web.", (key, "string", "What to search for")),
            {key: topic}, text, {"title": title}, f"I found this: {title}.")


def _email(rng):
    person, subject = rng.choice(words.FIRST_NAMES), toolbox.phrase_text(rng)
    text = f"Send {rng.choice(['an email', 'a message'])} to {person} about {subject}."
    return (_tool(rng.choice(["send_email", "send_mail", "send_message", "email"]), "Send a message to a person.", ("to", "string"), ("subject", "string")),
            {"to": person, "subject": subject}, text, {"status": "sent"}, f"The message to {person} about {subject} was sent.")


def _stock(rng):
    symbol, price = rng.choice(["AAPL", "MSFT", "TSLA", "IBM", "AMD", "NVDA", "SAP", "GOOG"]), rng.randint(10, 900)
    key = rng.choice(["symbol", "ticker"])
    text = rng.choice(["What is the stock price of {}?", "What's {} trading at?", "Price of {}?", "Get the stock price of {}."]).format(symbol)
    return (_tool(rng.choice(["get_stock_price", "stock_price", "get_quote"]), "Get the price of a stock.", (key, "string")), {key: symbol}, text,
            {"price": price, "currency": "USD"}, f"The price of {symbol} is {price} USD.")


def _read_file(rng):
    path = rng.choice(["notes", "readme", "todo", "main", "config", "data", "report"]) + rng.choice([".txt", ".md", ".py", ".json", ".csv"])
    if rng.random() < 0.3:
        path = rng.choice(["src", "docs", "tests", "home"]) + "/" + path
    key, body = rng.choice(["path", "file", "filename"]), f"{rng.choice(words.FOODS)} and {rng.choice(words.FOODS)}"
    text = rng.choice(["Read the file {}.", "What is in {}?", "Show me {}.", "Open {} and tell me what it says."]).format(path)
    return (_tool(rng.choice(["read_file", "open_file", "cat", "read"]), "Read a file.", (key, "string", "Path of the file")), {key: path}, text,
            {"content": body}, f"The file {path} says: {body}")


def _timer(rng):
    count, unit = rng.randint(1, 60), rng.choice(["minutes", "seconds"])
    return (_tool(rng.choice(["set_timer", "start_timer", "timer"]), "Start a timer.", (unit, "integer")), {unit: count},
            rng.choice(["Set a timer for {} {}.", "Start a {} {} timer."]).format(count, unit), {"status": "started"}, f"The timer for {count} {unit} is started.")


def _light(rng):
    room, state = rng.choice(["kitchen", "bedroom", "bathroom", "office", "garage", "hall"]), rng.choice(["on", "off"])
    return (_tool(rng.choice(["set_light", "switch_light", "control_light"]), "Switch the light of a room.", ("room", "string"), ("state", "string", None, ["on", "off"])),
            {"room": room, "state": state}, rng.choice([f"Turn {state} the light in the {room}.", f"Switch the {room} light {state}."]), {"status": "ok"},
            f"The light in the {room} is {state}.")


def _flight(rng):
    here, there = rng.sample(words.CITIES, 2)
    day, flight = toolbox.date_value(rng), rng.choice(["AB", "KL", "BA", "LH"]) + str(rng.randint(100, 999))
    on = day if day in ("today", "tomorrow") else f"on {day}"
    return (_tool(rng.choice(["book_flight", "find_flight", "search_flights"]), "Find a flight between two cities.", ("from", "string"), ("to", "string"), ("date", "string")),
            {"from": here, "to": there, "date": day}, rng.choice([f"Find a flight from {here} to {there} {on}.", f"I need a flight from {here} to {there} {on}."]),
            {"flight": flight, "price": rng.randint(50, 900)}, None)


_ALL = [_weather, _weather, _weather, _time, _sum, _calculator, _search, _email, _stock, _read_file, _timer, _light, _flight]


def draw(rng):
    """(tool, arguments, request, result object, reply)"""
    tool, given, text, result, reply = rng.choice(_ALL)(rng)
    if reply is None:
        reply = f"I found flight {result['flight']} for {result['price']}."
    return tool, given, text, result, reply
