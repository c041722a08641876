"""The README's examples, as they stand there."""

import re

from server import REPOSITORY

README_URL = "http://127.0.0.1:8000"


def example(language, beginning, url):
    """The code block of this language that begins so, aimed at `url`."""
    text = (REPOSITORY / "README.md").read_text()
    for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if block.startswith(beginning):
            assert README_URL in block
            return block.replace(README_URL, url)
    raise LookupError(f"README.md has no {language} example beginning with {beginning!r}")
