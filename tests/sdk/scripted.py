"""The edge of Tandem with a script in place of its model, for clients that ask more than the demonstration model can do.

Claude Code and Codex send prompts of 10,000 tokens and more, with dozens of tools. What they get here comes through the
same HTTP edge, renderer, parser and engine as any reply; only the tokens are looked up in a script.
"""

import json
import subprocess


def thought(text):
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def answer(text):
    return f"<|channel|>final<|message|>{text}<|return|>"


def call(tool, arguments):
    """A call of a tool by the name that the model sees."""
    return f"<|channel|>commentary to=functions.{tool} <|constrain|>json<|message|>{json.dumps(arguments)}<|call|>"


class ScriptedServer:
    """Serves `lines`, pairs of a text that the prompt must hold and the reply to it. The first that fits counts, so what
    comes late in a conversation goes first."""

    def __init__(self, program, lines, folder):
        script = folder / "script.json"
        script.write_text(json.dumps([{"seen": seen, "reply": reply} for seen, reply in lines]))
        self.log = (folder / "scripted.log").open("wb")
        self.process = subprocess.Popen(
            [program, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), (folder / "scripted.log").read_text()

    def stop(self):
        self.process.stdin.close()
        code = self.process.wait(60)
        self.log.close()
        return code
