"""Programs that people point at a server: run as they run them, in a home of their own."""

import os
import pathlib
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BIN = REPOSITORY / "target" / "node" / "sdk" / "node_modules" / ".bin"


def run(program, arguments, folder, environment, timeout_s=240):
    """Runs a program that npm installed. Returns what it printed; it must succeed."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **environment}
    done = subprocess.run(
        [BIN / program, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
