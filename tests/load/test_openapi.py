"""Schemathesis makes requests up from the OpenAPI document, sensible ones and others, and holds the answers to it."""

import json
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# What a schema cannot say makes some requests that fit it wrong all the same: a tool choice without tools, two fields
# that exclude each other, the id of a response that is not there.
EXCLUDED = "positive_data_acceptance"
EXAMPLES = 20


def test_answers_fit_the_document(serve, tmp_path):
    # With a small context no request takes long.
    server = serve(context="256", max_streams="8")
    run = [pathlib.Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json"]
    run += ["--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--exclude-checks", EXCLUDED]
    run += ["--generation-deterministic", "--continue-on-failure", "--no-color"]
    run += ["--request-timeout", "120"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    selected, tested = (int(re.search(rf"{word}: (\d+)", done.stdout)[1]) for word in ["Selected", "Tested"])
    assert selected == tested
    # It takes paths that differ in a slash at the end for one.
    paths = json.loads(server.get("/openapi.json")[1])["paths"]
    assert tested >= len({path.rstrip("/") for path in paths}), done.stdout[-2_000:]
