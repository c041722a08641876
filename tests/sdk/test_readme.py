"""The README's Python example runs as it is."""

import subprocess
import sys

from readme import example
from server import has_demo_model


def test_python_example(server, model):
    code = example("python", "from openai import OpenAI", server.url).replace('model="tandem-demo"', f'model="{model}"')
    if not has_demo_model():
        # Random words rarely end by themselves.
        code = code.replace("stream=True", "stream=True, max_tokens=50")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    if has_demo_model():
        assert len(done.stdout.split()) > 10
