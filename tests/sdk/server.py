"""A `tandem serve` of our own, started for tests and stopped after them."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Once it is there, `tandem serve` without a model serves it.
DEMO_MODEL = REPOSITORY / "models" / "tandem-demo"
READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 30


def has_demo_model():
    return DEMO_MODEL.is_dir()


class Server:
    """Runs a command that serves on a free port, and waits until it is ready.

    `command` is the program with its arguments; what else it needs is given by settings (`max_streams="4"`), which
    become TANDEM_* variables. Its log goes to the file `log`.
    """

    def __init__(self, command, log, ready_timeout_s=READY_TIMEOUT_S, **settings):
        self.log = pathlib.Path(log)
        settings = {"port": "0", "ollama_port": "0", **({} if has_demo_model() else {"synthetic": "tiny"}), **settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        environment |= {f"TANDEM_{name.upper()}": value for name, value in settings.items()}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=REPOSITORY
            )
        try:
            deadline = time.monotonic() + ready_timeout_s
            self.url = self._wait(deadline, self._logged_url, "to say where it listens")
            self._wait(deadline, lambda: self.get("/ready")[0] == 200, "to be ready")
        except BaseException:
            self.stop()
            raise

    def _wait(self, deadline, found, what):
        while not (result := found()):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}:\n{self.log.read_text()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain for the server {what}:\n{self.log.read_text()}")
            time.sleep(0.1)
        return result

    def _logged_url(self):
        match = re.search(r"http://[0-9.]+:[0-9]+", self.log.read_text(errors="replace"))
        return match and match[0]

    def stop(self):
        """Asks it to end, as a terminal would; returns its exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def request(self, method, path, body=None, timeout_s=120):
        """Status and text of a raw request; `body` is bytes, or anything JSON can say."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body):
        """JSON of a POST that must succeed."""
        status, text = self.request("POST", path, body)
        assert status == 200, f"{status}: {text}"
        return json.loads(text)

    def metric(self, name):
        """The value of an unlabelled figure on the metrics page."""
        status, page = self.get("/metrics")
        assert status == 200
        match = re.search(rf"^tandem_{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", page, re.MULTILINE)
        assert match, f"no {name} in\n{page}"
        return float(match[1])
