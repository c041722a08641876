#!/usr/bin/env python3
"""Follows the README's quick start: runs its first command, waits until it serves, and sends its curl request.

    quick_start.py COMMAND...
"""

import json
import subprocess
import sys
import tempfile

from readme import example
from server import Server, has_demo_model

# The first build is part of the quick start.
BUILD_TIMEOUT_S = 1200


def main(command):
    with tempfile.NamedTemporaryFile() as log:
        server = Server(command, log.name, ready_timeout_s=BUILD_TIMEOUT_S)
        try:
            curl = example("sh", "curl", server.url)
            if not has_demo_model():
                print("models/tandem-demo is not in the repository: the answer will be random words")
                curl = curl.replace('"messages"', '"max_tokens": 50, "messages"')
            print(curl)
            answer = subprocess.run(["bash", "-c", curl], check=True, stdout=subprocess.PIPE, timeout=180).stdout
            print(answer.decode())
            choice = json.loads(answer)["choices"][0]
            if has_demo_model():
                assert choice["finish_reason"] == "stop" and choice["message"]["content"]
        finally:
            code = server.stop()
    assert code == 0, f"the server ended with code {code}"


if __name__ == "__main__":
    main(sys.argv[1:])
