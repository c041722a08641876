"""Arithmetic with workings, sorting, days, units."""
from .. import words
from .common import answer, conversation, draw_effort, pick_split, think, user


def column_sum(a, b):
    """Column addition from the right, written out: 47+85: 7+5=12 4+8+1=13 -> 132."""
    steps, carry, left, right = [], 0, str(a)[::-1], str(b)[::-1]
    for i in range(max(len(left), len(right))):
        x = int(left[i]) if i < len(left) else 0
        y = int(right[i]) if i < len(right) else 0
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{a}+{b}: {', '.join(steps)}, so {a + b}"


def column_difference(a, b):
    """Column subtraction, a >= b."""
    steps, borrow, left, right = [], 0, str(a)[::-1], str(b)[::-1]
    for i in range(len(left)):
        x = int(left[i])
        y = int(right[i]) if i < len(right) else 0
        minus = "-1" if borrow else ""
        value = x - y - borrow
        if value < 0:
            steps.append(f"{x + 10}-{y}{minus}={value + 10}")
            borrow = 1
        else:
            steps.append(f"{x}-{y}{minus}={value}")
            borrow = 0
    return f"{a}-{b}: {', '.join(steps)}, so {a - b}"


def product_steps(a, b):
    """a times b for b below 100, through the tens and the ones."""
    if b < 10 or a < 10:
        return f"{a}*{b}={a * b}"
    tens, ones = b // 10, b % 10
    if ones == 0:
        return f"{a}*{tens}={a * tens}, add a zero: {a * b}"
    high, low = a * tens, a * ones
    keep, last = low // 10, low % 10
    return (f"{a}*{tens}={high}. {a}*{ones}={low}, that is {keep} and {last}. {column_sum(high, keep)}. "
            f"Then {last}: {a * b}")


def work(a, operator, b):
    if operator == "+":
        return column_sum(a, b), a + b
    if operator == "-":
        if a >= b:
            return column_difference(a, b), a - b
        return f"{a} is less than {b}. {column_difference(b, a)}. So -{b - a}", a - b
    return product_steps(a, b), a * b


_ASK = {
    "+": ["What is {a} + {b}?", "What is {a} plus {b}?", "{a}+{b}", "{a} + {b} = ?", "Add {a} and {b}.", "Compute {a} + {b}.",
          "How much is {a} plus {b}?", "What's {a}+{b}?", "Calculate {a} + {b}."],
    "-": ["What is {a} - {b}?", "What is {a} minus {b}?", "{a}-{b}", "{a} - {b} = ?", "Subtract {b} from {a}.", "Compute {a} - {b}.",
          "How much is {a} minus {b}?", "What's {a}-{b}?", "Calculate {a} - {b}."],
    "*": ["What is {a} * {b}?", "What is {a} times {b}?", "{a}*{b}", "{a} x {b} = ?", "Multiply {a} by {b}.", "Compute {a} * {b}.",
          "How much is {a} times {b}?", "What's {a}*{b}?", "Calculate {a} * {b}.", "What is {a} × {b}?"],
}


def _operands(rng):
    high = 99 if rng.random() < 0.9 else 9
    return rng.choice("+-*"), rng.randint(10 if high == 99 and rng.random() < 0.9 else 1, high), rng.randint(10 if high == 99 and rng.random() < 0.9 else 1, high)


def arithmetic(rng, held=False, effort=None):
    effort = effort or draw_effort(rng)
    if held:
        draw = lambda r: (r.choice("+-*"), r.randint(10, 99), r.randint(10, 99))
    else:
        draw = _operands
    operator, a, b = pick_split(rng, draw, held, text=lambda d: f"{d[1]}{d[0]}{d[2]}")
    if operator == "-" and a < b and rng.random() < 0.5:
        a, b = b, a
    steps, result = work(a, operator, b)
    question = rng.choice(_ASK[operator]).format(a=a, b=b)
    verb = {"+": "plus", "-": "minus", "*": "times"}[operator]
    sign = {"+": "+", "-": "-", "*": rng.choice(["*", "×"])}[operator]
    reply = rng.choice([f"{a} {sign} {b} = {result}", f"{a} {verb} {b} is {result}.", f"The answer is {result}.", f"{result}"])
    analysis = think(rng, effort, "wants a calculation", steps + ".")
    return conversation(rng, [user(question), answer(analysis, reply)], effort=effort), {"kind": "number", "value": result}


def word_problem(rng, held=False):
    """A two-number story."""
    effort, name, thing = draw_effort(rng), rng.choice(words.FIRST_NAMES), rng.choice(words.FOODS[:12] + words.THINGS[:20])
    a, b = rng.randint(2, 60), rng.randint(2, 39)
    plural = thing + "s"
    if rng.random() < 0.5:
        steps, result = work(a, "+", b)
        text = f"{name} has {a} {plural} and buys {b} more. How many does {name} have now?"
    else:
        a, b = max(a, b), min(a, b)
        steps, result = work(a, "-", b)
        text = f"{name} has {a} {plural} and gives {b} away. How many are left?"
    return conversation(rng, [user(text), answer(think(rng, effort, "asks a small sum", steps + "."), f"{name} has {result} {plural}.")],
                        effort=effort), {"kind": "number", "value": result}


def drill(rng, held=False):
    """Single facts in bulk: digits of a number, small products."""
    lines = []
    for _ in range(rng.randint(8, 16)):
        if rng.random() < 0.55:
            a, b = rng.randint(2, 99), rng.randint(2, 9)
            lines.append((f"{a}*{b}", str(a * b)))
        else:
            a, b = rng.randint(10, 999), rng.randint(1, 99)
            lines.append((f"{a}+{b}", column_sum(a, b).split(": ", 1)[1]))
    question = "Compute:\n" + "\n".join(q for q, _ in lines)
    body = "\n".join(f"{q}={r}" for q, r in lines)
    return conversation(rng, [user(question), answer("One line each.", body)], effort="low", instructions=None), None


def sort_numbers(rng, held=False):
    effort, numbers = draw_effort(rng), rng.sample(range(1, 100), rng.randint(3, 6))
    down = rng.random() < 0.25
    ordered = sorted(numbers, reverse=down)
    listed = ", ".join(map(str, numbers))
    text = rng.choice(["Sort these numbers: {}", "Sort {}", "Put these numbers in order: {}"]).format(listed)
    if down:
        text += rng.choice([" from largest to smallest", ", largest first"])
    word = "largest" if down else "smallest"
    core = f"{word.capitalize()} first: {' '.join(map(str, ordered))}."
    reply = ", ".join(map(str, ordered))
    return conversation(rng, [user(text), answer(think(rng, effort, "wants numbers sorted", core), reply)], effort=effort), {"kind": "text", "value": reply}


def sort_words(rng, held=False):
    pool = words.ANIMALS + words.FOODS + words.THINGS
    effort, chosen = draw_effort(rng), []
    for word in rng.sample(pool, 12):
        if all(word[0] != other[0] for other in chosen) and len(chosen) < 5:
            chosen.append(word)
    chosen = chosen[:rng.randint(3, 5)]
    ordered = sorted(chosen)
    text = rng.choice(["Sort these words alphabetically: {}", "Sort alphabetically: {}", "Put in alphabetical order: {}"]).format(", ".join(chosen))
    core = f"First letters: {', '.join(f'{w} {w[0]}' for w in chosen)}. In order: {' '.join(w[0] for w in ordered)}."
    reply = ", ".join(ordered)
    return conversation(rng, [user(text), answer(think(rng, effort, "wants words sorted", core), reply)], effort=effort), {"kind": "text", "value": reply}


def reverse_list(rng, held=False):
    effort, items = draw_effort(rng), rng.sample(words.ANIMALS + words.FOODS + words.THINGS, rng.randint(3, 6))
    turned = items[::-1]
    text = rng.choice(["Reverse this list: {}", "Write this list backwards: {}", "Reverse the order: {}"]).format(", ".join(items))
    core = f"The last is {items[-1]}, so start there: {' '.join(turned)}."
    return conversation(rng, [user(text), answer(think(rng, effort, "wants a list reversed", core), ", ".join(turned))], effort=effort), {"kind": "text", "value": ", ".join(turned)}


def extreme(rng, held=False):
    effort, numbers = draw_effort(rng), rng.sample(range(1, 1000), rng.randint(2, 5))
    name, value = rng.choice([("largest", max(numbers)), ("smallest", min(numbers))])
    return conversation(rng, [user(f"Which number is the {name}: {', '.join(map(str, numbers))}?"),
                              answer(think(rng, effort, f"wants the {name} number", f"The {name} is {value}."), f"The {name} number is {value}.")],
                        effort=effort), {"kind": "number", "value": value}


def days(rng, held=False):
    effort, kind = draw_effort(rng), rng.randint(0, 5)
    start = rng.randint(0, 6)
    day = words.DAYS[start]
    if kind == 0:
        step, word = rng.choice([(1, "after"), (-1, "before")])
        result = words.DAYS[(start + step) % 7]
        text, core = f"What day comes {word} {day}?", f"{result} is {word} {day}."
        reply = f"{result} comes {word} {day}."
    elif kind == 1:
        count = rng.randint(2, 9)
        path = [words.DAYS[(start + i) % 7] for i in range(1, count + 1)]
        result = path[-1]
        text = rng.choice(["What day is {n} days after {d}?", "If today is {d}, what day is it in {n} days?"]).format(n=count, d=day)
        core = f"From {day}: " + ", ".join(f"{i} {d}" for i, d in enumerate(path, 1)) + "."
        reply = f"It is {result}." if text.startswith("What") else f"It will be {result}."
    elif kind == 2:
        month = rng.randint(0, 11)
        result = str(words.MONTH_DAYS[month])
        text = f"How many days are in {words.MONTHS[month]}?"
        core = f"{words.MONTHS[month]} has {result} days" + (", 29 in a leap year." if month == 1 else ".")
        reply = core
    elif kind == 3:
        month = rng.randint(0, 11)
        step, word = rng.choice([(1, "after"), (-1, "before")])
        result = words.MONTHS[(month + step) % 12]
        text, core = f"Which month comes {word} {words.MONTHS[month]}?", f"{result} is {word} {words.MONTHS[month]}."
        reply = f"{result} comes {word} {words.MONTHS[month]}."
    elif kind == 4:
        result = "7"
        text, core, reply = "How many days are in a week?", "A week has 7 days.", "There are 7 days in a week: " + ", ".join(words.DAYS) + "."
    else:
        result = ", ".join(words.DAYS)
        text, core, reply = rng.choice(["List the days of the week.", "Name the days of the week."]), "Seven days, from Monday.", result + "."
    return conversation(rng, [user(text), answer(think(rng, effort, "asks about days", core), reply)], effort=effort), {"kind": "text", "value": result}


_UNITS = [("minutes", "hours", 60), ("seconds", "minutes", 60), ("hours", "days", 24), ("days", "weeks", 7), ("months", "years", 12),
          ("meters", "kilometers", 1000), ("centimeters", "meters", 100), ("millimeters", "centimeters", 10), ("grams", "kilograms", 1000),
          ("milliliters", "liters", 1000), ("inches", "feet", 12), ("cents", "dollars", 100), ("eggs", "dozens", 12)]


def units(rng, held=False):
    effort = draw_effort(rng)
    small, big, factor = rng.choice(_UNITS)
    count = rng.randint(2, 12)
    result = count * factor
    text = rng.choice(["How many {s} are in {n} {b}?", "Convert {n} {b} to {s}.", "What is {n} {b} in {s}?"]).format(s=small, n=count, b=big)
    core = f"One of the {big} is {factor} {small}. {count}*{factor}={result}."
    return conversation(rng, [user(text), answer(think(rng, effort, "wants a unit converted", core), f"{count} {big} are {result} {small}.")],
                        effort=effort), {"kind": "number", "value": result}


def counting(rng, held=False):
    effort = draw_effort(rng)
    start, step = (1, 1) if rng.random() < 0.6 else (rng.randint(1, 20), rng.choice([1, 2, 5, 10]))
    length = rng.randint(3, 20)
    values = [start + i * step for i in range(length)]
    how = "" if step == 1 else f" in steps of {step}"
    text = rng.choice([f"Count from {start} to {values[-1]}{how}.", f"Please count from {start} to {values[-1]}{how}"])
    return conversation(rng, [user(text), answer(think(rng, effort, "wants me to count", f"From {start} to {values[-1]} by {step}."),
                                                 ", ".join(map(str, values)))], effort=effort), None
