"""What all generators share: conversations, thinking of the length the effort asks for, held-out splits."""
import zlib

GENERIC_INSTRUCTIONS = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.", "Be helpful and brief.",
    "Be concise.", "You are a small assistant. Answer clearly.", "Answer the user's questions.", "Be polite.",
    "You are an assistant that can use tools.", "Help the user.", "You are tandem-demo, a small demonstration model.",
]


def held_out(text, part=10):
    """One tenth of all names, words and number pairs never appear in training."""
    return zlib.crc32(text.encode()) % part == 0


def pick_split(rng, draw, held, text=lambda drawn: drawn, tries=200):
    """Draws until the drawn thing is on the wanted side of the split."""
    for _ in range(tries):
        drawn = draw(rng)
        if held_out(text(drawn)) == held:
            return drawn
    return drawn


def date(rng):
    return f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def conversation(rng, messages, instructions="maybe", tools=None, effort=None, response_format=None):
    if instructions == "maybe":
        instructions = rng.choice(GENERIC_INSTRUCTIONS) if rng.random() < 0.4 else None
    return {"date": date(rng), "effort": effort or draw_effort(rng), "instructions": instructions, "tools": tools or [],
            "response_format": response_format, "messages": messages}


def draw_effort(rng):
    return rng.choice(["low", "medium", "medium", "high"])


def user(text):
    return {"role": "user", "content": text}


def answer(analysis, content):
    return {"role": "assistant", "analysis": analysis, "content": content}


def call(analysis, name, arguments):
    return {"role": "assistant", "analysis": analysis, "call": (name, arguments)}


def tool_result(name, content):
    return {"role": "tool", "name": name, "content": content}


def think(rng, effort, about, core, check=None):
    """Analysis text: `core` alone at low effort, with the task before it at medium, with a plan and a check at high."""
    if effort == "low":
        return core
    lead = rng.choice([f"The user {about}.", f"User {about}."])
    if effort == "medium":
        return f"{lead} {core}"
    plan = rng.choice(["Let me think step by step.", "Let me work it out with care.", "I will take it one step at a time."])
    check = check or rng.choice(["That looks right.", "I have checked it once more and it holds."])
    end = rng.choice(["Now I can answer.", "I will give the answer now.", "Time to answer."])
    return f"{lead} {plan}\n{core}\n{check} {end}"
