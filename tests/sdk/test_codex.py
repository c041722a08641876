"""Codex in exec mode against the edge with a scripted model: the demonstration model could not follow it."""

from clients import run
from scripted import answer, call, thought

SECRET = "The password is heliotrope."
ASK = "What is in secret.txt?"
SCRIPT = [
    (SECRET, thought("There it is.") + answer("The file says: heliotrope.")),
    (ASK, thought("I must read it.") + call("exec_command", {"cmd": "cat secret.txt"})),
]
# The sandbox is the test's own folder: containers of CI allow no other.
ARGUMENTS = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", ASK]


def test_a_turn_in_which_a_command_is_run(scripted, tmp_path):
    server = scripted(*SCRIPT)
    (tmp_path / "secret.txt").write_text(SECRET + "\n")
    settings = tmp_path / "home" / ".codex"
    settings.mkdir(parents=True)
    settings.joinpath("config.toml").write_text(f"""
model = "gpt-oss-20b"
model_provider = "tandem"

[model_providers.tandem]
name = "Tandem"
base_url = "{server.url}/v1"
wire_api = "responses"
""")
    # The file's text is in no prompt before the command has really been run.
    assert run("codex", ["exec", *ARGUMENTS], tmp_path, {}).strip() == "The file says: heliotrope."


def test_codex_oss_takes_the_server_for_ollama(scripted, tmp_path):
    server = scripted(*SCRIPT)
    (tmp_path / "secret.txt").write_text(SECRET + "\n")
    arguments = ["exec", "--oss", "--local-provider", "ollama", *ARGUMENTS]
    printed = run("codex", arguments, tmp_path, {"CODEX_OSS_BASE_URL": f"{server.url}/v1"})
    assert printed.strip() == "The file says: heliotrope."
