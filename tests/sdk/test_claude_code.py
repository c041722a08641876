"""Claude Code in print mode against the edge with a scripted model: the demonstration model could not follow it."""

import pytest

from clients import run
from scripted import answer, call, thought

SECRET = "The password is heliotrope."


@pytest.mark.parametrize("base", ["", "/anthropic"])
def test_a_turn_in_which_a_file_is_read(scripted, tmp_path, base):
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET + "\n")
    server = scripted(
        (SECRET, thought("There it is.") + answer("The file says: heliotrope.")),
        ("What is in secret.txt?", thought("I must read it.") + call("Read", {"file_path": str(secret)})),
        ("", answer("Secret")),
    )
    environment = {
        "ANTHROPIC_BASE_URL": server.url + base,
        "ANTHROPIC_AUTH_TOKEN": "unused",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    arguments = ["-p", "What is in secret.txt?", "--allowedTools", "Read"]
    # The file's text is in no prompt before the tool has really been called.
    assert run("claude", arguments, tmp_path, environment).strip() == "The file says: heliotrope."
