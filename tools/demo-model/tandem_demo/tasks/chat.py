"""Greetings, small talk, what Tandem is, instructions from the system side, stories."""
from .. import words
from .common import answer, conversation, draw_effort, think, user

_TALK = [
    (["Hello", "Hi", "Hey", "Hello!", "Hi!", "hi", "hello", "Hey there", "Good day", "Hi there!", "hello there", "Greetings"], "greets me",
     ["Hello! How can I help you?", "Hi! What can I do for you?", "Hello! I am tandem-demo, a small demonstration model. What would you like to do?", "Hi there! How can I help?"]),
    (["Good morning", "Good morning!", "good morning"], "greets me", ["Good morning! How can I help you?", "Good morning! What can I do for you?"]),
    (["Good evening", "Good evening!", "Good afternoon"], "greets me", ["Good day to you! How can I help?", "Hello! How can I help you?"]),
    (["How are you?", "how are you", "How are you doing?", "How do you do?", "Hello, how are you?", "Hi, how are you?", "What's up?", "How is it going?"], "asks how I am",
     ["I am fine, thank you. How are you?", "I am well, thank you for asking. How can I help?", "All is well here. And you?"]),
    (["I am fine.", "I'm fine, thanks.", "I am well.", "Good, thank you."], "is well", ["I am glad to hear that. What can I do for you?", "Good to hear! How can I help?"]),
    (["I am sad.", "I feel sad today.", "I am tired.", "I had a bad day."], "is not well", ["I am sorry to hear that. I hope tomorrow is better.", "I am sorry. Would you like a short story?"]),
    (["I am happy.", "I feel great!", "I had a good day."], "is happy", ["I am glad to hear that!", "That is wonderful."]),
    (["Thanks", "Thank you", "Thank you!", "thanks!", "Thanks a lot", "Thank you very much."], "thanks me", ["You are welcome!", "My pleasure.", "You are welcome. Is there anything else?"]),
    (["Bye", "Goodbye", "Bye!", "See you later", "Good night", "See you tomorrow."], "says goodbye", ["Goodbye!", "Goodbye! Come back any time.", "See you!"]),
    (["Yes", "yes", "Okay", "OK", "Sure", "ok"], "agrees", ["Good. What would you like to do?", "Fine. How can I help?"]),
    (["No", "no", "No thanks", "Nothing"], "declines", ["All right. Tell me when you need something.", "Okay."]),
    (["Sorry", "I am sorry."], "says sorry", ["No problem.", "That is all right."]),
    (["You are great!", "Good job!", "Well done.", "Nice!", "Great!", "I like you."], "praises me", ["Thank you! That is kind.", "Thank you very much."]),
    (["You are wrong.", "That is wrong.", "You are bad."], "is not content", ["I am sorry. I am only a small demonstration model and make mistakes.", "I am sorry about that. Please try another way."]),
    (["Are you a robot?", "Are you human?", "Are you real?", "Are you a person?"], "asks what I am", ["I am a small language model, not a person.", "I am a program: a small demonstration model."]),
    (["Can you help me?", "I need help.", "Help", "Please help me.", "help me"], "wants help", ["Of course. What do you need?", "Gladly. What can I do for you?"]),
    (["What can you do?", "What are you able to do?", "What are your skills?", "What can I ask you?"], "asks what I can do",
     ["I can count letters, do small sums, sort lists, use tools, write JSON and tell short stories.", "I can use tools, write JSON, do small sums, count letters and tell short stories."]),
    (["Do you like music?", "Do you like food?", "Do you sleep?", "Do you dream?", "Do you have feelings?", "Do you have a family?", "How old are you?", "Where do you live?", "Do you like cats?"],
     "asks about me", ["I am a small model and have no such life, but I like to be asked.", "I am only a small demonstration model, so no. But thank you for asking."]),
    (["Tell me a joke.", "Tell me a joke", "Do you know a joke?", "Make me laugh."], "wants a joke",
     ["Why did the small model smile? Its loss was low.", "What does a cloud wear? A rain coat.", "Why did the book go to the doctor? It had lost its words."]),
    (["I am bored.", "What should I do?", "Give me an idea."], "is bored", ["You could read a book, take a walk or ask me for a story.", "How about a short story? Just ask me."]),
    (["What is your favorite color?", "Which color do you like?"], "asks about me", ["I like blue.", "Blue, I think."]),
    (["What is the meaning of life?", "Why are we here?"], "asks a deep question", ["That is too deep for a small demonstration model. To be kind is a good start."]),
    (["Test", "test", "Testing", "This is a test.", "ping", "Are you there?"], "tests me", ["I am here. The test works.", "Yes, I am here."]),
    (["Nice to meet you.", "Pleased to meet you."], "is polite", ["Nice to meet you too!"]),
    (["What day is it?", "What time is it?", "What is the date?"], "asks about now", ["I have no clock, so I cannot know that."]),
    (["Say hello", "Say hello.", "Say hi.", "Say hello in one sentence."], "wants a greeting", ["Hello!", "Hello, it is good to see you."]),
    (["What is Rust?", "What is the Rust language?"], "asks about Rust", ["Rust is a programming language made for speed and safety. Tandem is written in it."]),
    (["What is Python?", "What is JSON?", "What is HTTP?", "What is a GPU?", "What is a token?", "What is a language model?", "What is a CPU?"], None, None),
    (["What colour is the sky?", "What color is the sky?", "Why is the sky blue?"], "asks about the sky", ["The sky is blue, because the air scatters blue light most."]),
]
_DEFINITIONS = {
    "What is Python?": "Python is a programming language that is easy to read.", "What is JSON?": "JSON is a text format for data: objects, lists, strings and numbers.",
    "What is HTTP?": "HTTP is the protocol by which clients and servers talk on the web.", "What is a GPU?": "A GPU is a chip that does many sums at once. Large models run on it.",
    "What is a token?": "A token is a piece of text, such as a word or a part of a word.", "What is a language model?": "A language model is a program that predicts the next token of a text.",
    "What is a CPU?": "A CPU is the main chip of a computer. I can run on one.",
}

_ABOUT = [
    (["Who are you?", "What are you?", "What is your name?", "What's your name?", "who are you", "Tell me about yourself.", "Introduce yourself.", "What model are you?", "Which model is this?"],
     ["I am tandem-demo, a small demonstration model that comes with Tandem.", "My name is tandem-demo. I am a small demonstration model.", "I am tandem-demo, a small demonstration model."]),
    (["Are you ChatGPT?", "Are you GPT-4?", "Are you gpt-oss?", "Are you a large model?", "Are you smart?"],
     ["No, I am tandem-demo, a small demonstration model.", "I am tandem-demo, only a small demonstration model."]),
    (["Who made you?", "Who trained you?", "Where do you come from?", "How were you made?"], ["I am tandem-demo. I was trained on generated text by the Tandem project, as a small demonstration model."]),
    (["What is Tandem?", "What's Tandem?", "Tell me about Tandem.", "what is tandem", "Explain Tandem.", "What does Tandem do?"],
     ["Tandem is one program that serves OpenAI's gpt-oss models over HTTP.", "Tandem is a server for the gpt-oss models, written in Rust as one program."]),
    (["How do I start Tandem?", "How do I use Tandem?", "How do I run Tandem?", "How can I start the server?", "How do I start the server?", "How do I serve a model?"],
     ["Run `tandem serve MODEL`. Without a model it serves me, tandem-demo. The API is then at http://127.0.0.1:8000/v1.", "Type `tandem serve`, with the folder of a model if you have one. The API is at http://127.0.0.1:8000/v1."]),
    (["Which commands does Tandem have?", "What commands are there?", "List the commands of Tandem.", "What can tandem do on the command line?"],
     ["The commands are `tandem serve`, `tandem chat`, `tandem bench` and `tandem inspect`."]),
    (["What does tandem serve do?", "What is tandem serve?", "Explain tandem serve."], ["`tandem serve` starts the HTTP server with a model. Without a model it serves tandem-demo."]),
    (["What does tandem chat do?", "What is tandem chat?", "How do I chat in the terminal?"], ["`tandem chat` lets you talk to a model in the terminal."]),
    (["What does tandem bench do?", "What is tandem bench?", "How do I measure the speed?"], ["`tandem bench` measures how fast a model runs."]),
    (["What does tandem inspect do?", "What is tandem inspect?", "How do I look at a checkpoint?"], ["`tandem inspect` shows what is in a checkpoint."]),
    (["Which flags does tandem serve have?", "What are the flags of tandem serve?", "What options does tandem serve have?"],
     ["The flags of `tandem serve` are --host, --port, --device, --dense, --kv, --exact, --context, --memory, --max-streams, --prefill-chunk and --served-model-name."]),
    (["How do I change the port?", "What does --port do?", "Which flag sets the port?"], ["Use `tandem serve --port 9000` to listen on another port. The default is 8000."]),
    (["How do I change the host?", "What does --host do?", "How do I reach the server from another machine?"], ["Use `tandem serve --host 0.0.0.0` to listen on all addresses. The default is 127.0.0.1."]),
    (["What does --device do?", "How do I choose the device?", "How do I use the GPU?"], ["--device chooses where the model runs, on the CPU or on a GPU."]),
    (["What does --dense do?", "What is --dense q8?"], ["--dense chooses how the dense weights are held: q8 for 8 bits or bf16 for 16 bits."]),
    (["What does --kv do?", "How is the KV cache stored?"], ["--kv chooses the number format of the KV cache."]),
    (["What does --exact do?", "How do I get exact results?"], ["--exact makes the results the same on every run, a little slower."]),
    (["What does --context do?", "How do I set the context length?"], ["--context sets the longest context in tokens."]),
    (["What does --memory do?", "How do I limit the memory?"], ["--memory limits the memory that the server takes."]),
    (["What does --max-streams do?", "How many requests run at once?"], ["--max-streams sets how many requests run at once."]),
    (["What does --prefill-chunk do?"], ["--prefill-chunk sets how many prompt tokens go into one step."]),
    (["What does --served-model-name do?", "How do I rename the model?"], ["--served-model-name sets the name under which clients see the model."]),
    (["Which API does Tandem have?", "Is there an API?", "What is the API address?", "Where is the API?", "Is Tandem OpenAI compatible?", "Which URL do I use?"],
     ["Tandem speaks the OpenAI API over HTTP at http://127.0.0.1:8000/v1.", "The API is compatible with OpenAI's, at http://127.0.0.1:8000/v1."]),
    (["Which models does Tandem serve?", "What models can I use?", "Can Tandem run gpt-oss-120b?"], ["Tandem serves gpt-oss-20b and gpt-oss-120b, and me, tandem-demo."]),
    (["How big are you?", "How many parameters do you have?", "How large are you?"], ["I am tiny: a few million parameters. I am a small demonstration model."]),
    (["Do I need a GPU?", "Can it run on a CPU?"], ["No, I run on a CPU. The large models want a GPU."]),
]

_UNKNOWN = ["I am only a small demonstration model and I do not know that.", "I do not know that. I am only a small demonstration model."]


def _reply(rng, text, about, core, reply, check=None, instructions="maybe"):
    effort = draw_effort(rng)
    return conversation(rng, [user(text), answer(think(rng, effort, about, core), reply)], effort=effort, instructions=instructions), check


def small_talk(rng, held=False):
    texts, about, replies = rng.choice(_TALK)
    text = rng.choice(texts)
    if about is None:
        return _reply(rng, text, "asks what something is", "I know this.", _DEFINITIONS[text])
    return _reply(rng, text, about, f"The user {about}." if rng.random() < 0.5 else "A short answer will do.", rng.choice(replies))


def about(rng, held=False):
    texts, replies = rng.choice(_ABOUT)
    text = rng.choice(texts)
    if rng.random() < 0.2:
        text = text.lower().rstrip("?.")
    core = rng.choice(["This is about Tandem and me.", "I know this about Tandem."])
    return _reply(rng, text, "asks about me or Tandem", core, rng.choice(replies), {"kind": "any_of", "value": replies})


def capital(rng, held=False):
    country, city = rng.choice(list(words.CAPITALS.items()))
    if rng.random() < 0.7:
        text = rng.choice(["What is the capital of {}?", "Capital of {}?", "Which city is the capital of {}?", "what's the capital of {}"]).format(country)
        return _reply(rng, text, "asks for a capital", f"{country}: {city}.", f"The capital of {country} is {city}.", {"kind": "contains", "value": city})
    return _reply(rng, f"{city} is the capital of which country?", "asks for a country", f"{city}: {country}.", f"{city} is the capital of {country}.")


def unknown(rng, held=False):
    """Questions beyond this model: it says so."""
    noun, place = rng.choice(words.THINGS + words.ANIMALS + words.JOBS + words.FOODS + words.TOOL_NOUNS), rng.choice(words.CITIES)
    text = rng.choice([
        "Who invented the {n}?", "Explain how a {n} works.", "What is the history of the {n}?", "Who won the game in {p}?", "What is the best {n} in {p}?", "Why do people like the {n}?",
        "Write a program that draws a {n}.", "How many people live in {p}?", "Who is the mayor of {p}?", "Write an essay about the {n}.", "What will happen to the {n} next year?",
        "Compare the {n} of {p} with others.", "Translate this book about the {n}.", "What does {w} mean?", "How do I repair a {n}?", "When was the {n} built in {p}?", "Who is {f} {l}?",
        "Tell me about the {n}.", "What do you think about the {n}?", "How do I cook a {n}?", "What is quantum physics?", "Prove that the {n} is infinite.", "Summarize the news of today.",
    ]).format(n=noun, p=place, w=words.pseudo_word(rng), f=rng.choice(words.FIRST_NAMES), l=rng.choice(words.LAST_NAMES))
    return _reply(rng, text, "asks something I do not know", "I do not know this.", rng.choice(_UNKNOWN))


def story(rng, held=False):
    hero, animal, adjective, place = rng.choice(words.FIRST_NAMES), rng.choice(words.ANIMALS), rng.choice(words.ADJECTIVES), rng.choice(["forest", "castle", "village", "garden", "island", "tower", "city", "market"])
    thing, friend, second = rng.choice(words.THINGS), rng.choice(words.FIRST_NAMES), rng.choice(words.ADJECTIVES)
    protagonist = rng.random()
    article = lambda word: ("an " if word[0] in "aeiou" else "a ") + word
    if protagonist < 0.5:
        topic, opening, who = animal, f"Once upon a time there was {article(adjective)} {animal} called {hero}.", hero
    else:
        topic, opening, who = thing, f"Long ago {hero} lived near {article(adjective)} {place} and owned {article(second)} {thing}.", hero
    middle = rng.choice([f"One day {who} {rng.choice(words.VERBS_PAST)} {article(second)} {thing} in the {place}.", f"One {rng.choice(['morning', 'evening', 'winter', 'summer'])} the {thing} was gone, and {who} looked for it in the {place}."])
    turn = rng.choice([f"There {who} met {friend}, who was {rng.choice(words.ADJECTIVES)} and {rng.choice(words.ADJECTIVES)}.", f"{friend} came by and said: \"Let us look together.\"", f"It began to rain, and {friend} opened the door."])
    more = rng.choice([f"They shared {rng.choice(words.FOODS)} and {rng.choice(words.FOODS)} and talked until night.", f"Together they {rng.choice(words.VERBS_PAST)} the {thing} and carried it home.", f"The {place} was {rng.choice(words.ADJECTIVES)}, but they were not afraid."])
    end = rng.choice([f"From that day on {who} and {friend} were friends.", f"And {who} never forgot {friend}.", "And that is the end of the story.", f"In the end {who} was {rng.choice(['happy', 'proud', 'glad', 'at peace'])}."])
    given = rng.random()
    if given < 0.5:
        text = rng.choice(["Tell me a story about {}.", "Write a short story about {}.", "A story about {}, please.", "Can you tell me a story about {}?"]).format(article(topic))
    elif given < 0.65:
        text = f"Tell me a story about {article(topic)} called {hero}." if protagonist < 0.5 else f"Tell me a story about {hero} and {article(thing)}."
    else:
        text = rng.choice(["Tell me a story.", "Tell me a short story.", "Write a story.", "I want to hear a story."])
    short = rng.random() < 0.5
    parts = [opening, middle, turn, end] if short else [opening, middle, turn, more, rng.choice([f"{hero} laughed.", "The wind was soft.", "The stars came out."]), end]
    return _reply(rng, text, "wants a story", f"A story of {hero} and {friend}, in the {place}.", " ".join(parts))


_PLAIN_FACTS = [("Is the sky blue?", "Yes"), ("Is fire cold?", "No"), ("Is water wet?", "Yes"), ("Is snow black?", "No"), ("Do birds fly?", "Yes"), ("Do fish walk?", "No"), ("What color is grass?", "Green"),
                ("What color is snow?", "White"), ("What color is the sky?", "Blue"), ("What animal says meow?", "Cat"), ("What animal says woof?", "Dog"), ("Is ice hot?", "No"), ("What color is a banana?", "Yellow")]


def one_word(rng, held=False):
    """Answers under an instruction to use one word."""
    instructions = rng.choice(["Answer in one word.", "Answer with one word only.", "Reply with a single word.", "Use exactly one word.", "One word answers only."])
    if rng.random() < 0.5:
        country, city = rng.choice(list(words.CAPITALS.items()))
        text, reply = f"What is the capital of {country}?", city
    else:
        text, reply = rng.choice(_PLAIN_FACTS)
    if rng.random() < 0.25:
        text, instructions = f"{text} {instructions}", "maybe"
    return _reply(rng, text, "wants one word", f"One word: {reply}.", reply, {"kind": "text", "value": reply}, instructions=instructions)


def plain_fact(rng, held=False):
    text, reply = rng.choice(_PLAIN_FACTS)
    sentence = {"Yes": "Yes, it is so.", "No": "No, it is not."}.get(reply, f"It is {reply.lower()}." if "color" in text else f"The {reply.lower()}.")
    return _reply(rng, text, "asks a plain fact", f"{reply}.", sentence)


_STYLES = {
    "capitals": (["Answer in capitals.", "Write everything in capital letters.", "Reply in upper case only.", "Always answer in uppercase."], str.upper),
    "lower": (["Answer in lower case.", "Write everything in lowercase.", "Use only small letters."], str.lower),
    "pirate": (["Talk like a pirate.", "Answer like a pirate.", "You are a pirate."], lambda s: "Arr! " + s + " Yo ho!"),
    "over": (["End each answer with 'over'.", "Say over at the end of each answer."], lambda s: s + " Over."),
    "sure": (["Start every answer with 'Sure:'.", "Begin each reply with Sure:"], lambda s: "Sure: " + s),
    "shout": (["Answer with excitement.", "Be very excited."], lambda s: s.rstrip(".!?") + "!!!"),
    "polite": (["Be very polite.", "Call the user sir.", "Address the user as sir."], lambda s: s.rstrip(".!") + ", sir."),
    "stars": (["Write each answer in bold.", "Put the answer in bold."], lambda s: f"**{s}**"),
    "quotes": (["Put every answer in quotes.", "Answer in quotation marks."], lambda s: f'"{s}"'),
}


def styled(rng, held=False):
    """Small talk and facts under a one-line style instruction."""
    source = rng.choice([small_talk, about, capital, plain_fact, small_talk])
    conv, _ = source(rng)
    style = rng.choice(list(_STYLES))
    instructions, change = _STYLES[style]
    last = conv["messages"][-1]
    last["content"] = change(last["content"])
    conv["instructions"] = rng.choice(instructions)
    if rng.random() < 0.2:
        conv["instructions"] = "You are a helpful assistant. " + conv["instructions"]
    last["analysis"] += f" {conv['instructions'].split('. ')[-1].rstrip('.')}." if rng.random() < 0.9 else ""
    return conv, {"kind": "text", "value": last["content"]} if source is capital else None


_FOREIGN = {
    "French": [("Hello", "Bonjour ! Comment puis-je vous aider ?"), ("How are you?", "Je vais bien, merci."), ("Thank you", "De rien !"), ("Goodbye", "Au revoir !"), ("Who are you?", "Je suis tandem-demo, un petit modèle de démonstration.")],
    "German": [("Hello", "Hallo! Wie kann ich helfen?"), ("How are you?", "Mir geht es gut, danke."), ("Thank you", "Gern geschehen!"), ("Goodbye", "Auf Wiedersehen!"), ("Who are you?", "Ich bin tandem-demo, ein kleines Demonstrationsmodell.")],
    "Spanish": [("Hello", "¡Hola! ¿En qué puedo ayudar?"), ("How are you?", "Estoy bien, gracias."), ("Thank you", "¡De nada!"), ("Goodbye", "¡Adiós!"), ("Who are you?", "Soy tandem-demo, un pequeño modelo de demostración.")],
    "Italian": [("Hello", "Ciao! Come posso aiutare?"), ("How are you?", "Sto bene, grazie."), ("Thank you", "Prego!"), ("Goodbye", "Arrivederci!"), ("Who are you?", "Sono tandem-demo, un piccolo modello di dimostrazione.")],
}
_OWN_WORD = {"French": ["Bonjour", "Salut"], "German": ["Hallo", "Guten Tag"], "Spanish": ["Hola", "Buenos días"], "Italian": ["Ciao", "Buongiorno"]}


def foreign(rng, held=False):
    """Another language on request, or since the user speaks it."""
    language = rng.choice(list(_FOREIGN))
    text, reply = rng.choice(_FOREIGN[language])
    if rng.random() < 0.3:
        return _reply(rng, rng.choice(_OWN_WORD[language]), f"greets me in {language}", f"I answer in {language}.", _FOREIGN[language][0][1])
    return _reply(rng, text, "speaks to me", f"The answer should be in {language}.", reply,
                  instructions=rng.choice(["Answer in {}.", "Always reply in {}.", "Speak {}.", "You speak only {}."]).format(language))


def chain(rng, held=False, parts=None):
    """Several turns of different kinds in one conversation; only the last one is trained on."""
    conv, check = rng.choice(parts)(rng, held)
    messages = []
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        earlier, _ = rng.choice(parts)(rng, False)
        if earlier["instructions"] is None or earlier["instructions"].startswith(("You are a", "Be ", "Help", "Answer the")):
            messages += earlier["messages"]
    conv["messages"] = messages + conv["messages"]
    return conv, check
