"""Harmony rendering: conversations to token ids, and the grammar check used by the evaluation.

A conversation is a dict:
    date, effort, instructions (or None), tools (list of function definitions as in the OpenAI API), response_format
    (None or {"name", "schema"}), messages: [
        {"role": "user", "content"},
        {"role": "assistant", "analysis", "content"}            final answer
        {"role": "assistant", "analysis", "call": (name, arguments as JSON text)}
        {"role": "tool", "name", "content"}]
"""
import json

from .vocabulary import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START


def system_text(conversation):
    text = ("You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
            f"Current date: {conversation['date']}\n\nReasoning: {conversation['effort']}\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message.")
    if conversation.get("tools"):
        text += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return text


def _type_text(schema, indent=""):
    if "enum" in schema and schema.get("type", "string") == "string":
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "integer":
        return "number"
    if kind == "array":
        return _type_text(schema.get("items", {}), indent) + "[]"
    if kind == "object":
        return "{\n" + _fields_text(schema, indent) + indent + "}"
    return kind


def _fields_text(schema, indent=""):
    required = set(schema.get("required", []))
    lines = []
    for name, field in schema.get("properties", {}).items():
        if field.get("description"):
            lines.append(f"{indent}// {field['description']}\n")
        mark = "" if name in required else "?"
        line = f"{indent}{name}{mark}: {_type_text(field, indent + '    ')},"
        if "default" in field:
            default = field["default"]
            shown = default if isinstance(default, str) and "enum" in field else json.dumps(default)
            line += f" // default: {shown}"
        lines.append(line + "\n")
    return "".join(lines)


def tools_text(tools):
    text = "# Tools\n\n## functions\n\nnamespace functions {\n\n"
    for tool in tools:
        if tool.get("description"):
            text += f"// {tool['description']}\n"
        parameters = tool.get("parameters")
        if parameters:
            text += f"type {tool['name']} = (_: {{\n{_fields_text(parameters)}}}) => any;\n\n"
        else:
            text += f"type {tool['name']} = () => any;\n\n"
    return text + "} // namespace functions"


def developer_text(conversation):
    """None where there is nothing to say."""
    parts = []
    if conversation.get("instructions"):
        parts.append(f"# Instructions\n\n{conversation['instructions']}")
    if conversation.get("tools"):
        parts.append(tools_text(conversation["tools"]))
    if conversation.get("response_format"):
        form = conversation["response_format"]
        schema = json.dumps(form["schema"], separators=(",", ":"), ensure_ascii=False)
        parts.append(f"# Response Formats\n\n## {form['name']}\n\n{schema}")
    return "\n\n".join(parts) or None


class Renderer:
    """Writes token ids beside a loss weight for each."""

    def __init__(self, encoding, prompt_weight=0.0, user_weight=0.05):
        self.encode = encoding.encode_ordinary
        self.prompt_weight, self.user_weight = prompt_weight, user_weight
        self.ids, self.weights = [], []

    def _put(self, tokens, weight):
        self.ids += tokens
        self.weights += [weight] * len(tokens)

    def _message(self, header, content, weight, end=END, content_weight=None):
        self._put([START] + self.encode(header) + [MESSAGE], weight)
        self._put(self.encode(content), weight if content_weight is None else content_weight)
        self._put([end], weight)

    def _assistant(self, channel, content, weight, end=END):
        """START and the role belong to the prompt for the first message of a turn; a weight there does no harm."""
        self._put([START] + self.encode("assistant"), weight)
        self._put([CHANNEL] + self.encode(channel) + [MESSAGE], weight)
        pieces = content if isinstance(content, list) else [content]
        for piece in pieces:  # a list element that is a list holds token ids chosen by the generator
            self._put(piece if isinstance(piece, list) else self.encode(piece), weight)
        self._put([end], weight)

    def _call(self, name, arguments, weight):
        self._put([START] + self.encode("assistant"), weight)
        self._put([CHANNEL] + self.encode(f"commentary to=functions.{name} ") + [CONSTRAIN] + self.encode("json"), weight)
        self._put([MESSAGE] + self.encode(arguments) + [CALL], weight)

    def head(self, conversation):
        self._message("system", system_text(conversation), self.prompt_weight)
        developer = developer_text(conversation)
        if developer is not None:
            self._message("developer", developer, self.prompt_weight)

    def conversation(self, conversation, generation=False):
        """All messages. Turns before the last user message lose their analysis and carry no loss."""
        self.head(conversation)
        messages = conversation["messages"]
        last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
        for i, message in enumerate(messages):
            if message["role"] == "user":
                self._message("user", message["content"], self.prompt_weight, content_weight=self.user_weight)
            elif message["role"] == "tool":
                self._put([START] + self.encode(f"functions.{message['name']} to=assistant"), self.prompt_weight)
                self._put([CHANNEL] + self.encode("commentary") + [MESSAGE], self.prompt_weight)
                self._put(self.encode(message["content"]) + [END], self.prompt_weight)
            else:
                live = i > last_user
                weight = 1.0 if live else 0.0
                if live and message.get("analysis") is not None:
                    self._assistant("analysis", message["analysis"], weight)
                if "call" in message:
                    self._call(*message["call"], weight)
                else:
                    self._assistant("final", message["content"], weight, RETURN if i == len(messages) - 1 else END)
        if generation:
            self._put([START] + self.encode("assistant"), 0.0)
        return self.ids, self.weights


def prompt_ids(encoding, conversation):
    """The prompt that the model continues, ending with `<|start|>assistant`."""
    return Renderer(encoding).conversation(conversation, generation=True)[0]


def offered(call, tools):
    """Whether `call` (name, arguments) or None names one of `tools`; no call at all is fine."""
    return call is None or call[0] in {tool["name"] for tool in tools}


def parse_completion(encoding, ids):
    """Reads generated ids (what follows `<|start|>assistant`, stop token included).

    Returns (well_formed, analysis, final or None, call or None). Well formed means: any number of analysis messages ended by
    <|end|>, then a final message ended by <|return|> or a call of a function with arguments in JSON ended by <|call|>.
    """
    text, at, analysis = encoding.decode, 0, []
    while True:
        if at >= len(ids) or ids[at] != CHANNEL:
            return False, "\n".join(analysis), None, None
        try:
            start = ids.index(MESSAGE, at)
        except ValueError:
            return False, "\n".join(analysis), None, None
        stop = next((i for i in range(start + 1, len(ids)) if ids[i] >= 199998), None)
        if stop is None:
            return False, "\n".join(analysis), None, None
        body, ended = text(ids[start + 1:stop]), ids[stop]
        header = ids[at + 1:start]
        if CONSTRAIN in header:
            cut = header.index(CONSTRAIN)
            header_text, constrained = text(header[:cut]), text(header[cut + 1:])
        else:
            header_text, constrained = text(header), None
        if header_text == "analysis" and constrained is None and ended == END:
            analysis.append(body)
            if ids[stop + 1:stop + 3] != [START] + encoding.encode_ordinary("assistant"):
                return False, "\n".join(analysis), None, None
            at = stop + 3
            continue
        last = stop == len(ids) - 1
        if header_text == "final" and constrained is None:
            return ended == RETURN and last, "\n".join(analysis), body, None
        prefix = "commentary to=functions."
        if header_text.startswith(prefix) and constrained == "json" and ended == CALL and last:
            name = header_text[len(prefix):].strip()
            try:
                json.loads(body)
                return True, "\n".join(analysis), None, (name, body)
            except ValueError:
                return False, "\n".join(analysis), None, (name, body)
        return False, "\n".join(analysis), body if header_text == "final" else None, None
