"""The server under test, and which tests make sense on the model it serves."""

import openai
import pytest

from scripted import ScriptedServer
from server import REPOSITORY, Server, has_demo_model

WITHOUT_DEMO = "models/tandem-demo is not in the repository: the server speaks random words, so only shapes are tested"


def pytest_addoption(parser):
    parser.addoption("--tandem", default=str(REPOSITORY / "target/release/tandem"), help="the program to test")
    scripted = str(REPOSITORY / "target/debug/examples/scripted")
    parser.addoption("--scripted", default=scripted, help="its edge with a script for a model")


def pytest_configure(config):
    config.addinivalue_line("markers", "demo: needs a model that makes sense, the demonstration model")


def pytest_report_header():
    return "model: tandem-demo" if has_demo_model() else f"model: random words. {WITHOUT_DEMO}"


def pytest_collection_modifyitems(items):
    if not has_demo_model():
        for item in items:
            if item.get_closest_marker("demo"):
                item.add_marker(pytest.mark.skip(reason=WITHOUT_DEMO))


@pytest.fixture(scope="session")
def server(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    server = Server([request.config.getoption("--tandem"), "serve"], log, context="8192", max_body="1M", max_streams="8")
    yield server
    assert server.stop() == 0, log.read_text()
    # Whatever the tests sent, the server never stumbled.
    assert "panicked" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def client(server):
    # Retries would hide what the server does.
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=180)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture
def scripted(request, tmp_path_factory):
    """Starts a server whose model follows a script."""
    servers = []

    def start(*lines):
        folder = tmp_path_factory.mktemp("scripted")
        servers.append(ScriptedServer(request.config.getoption("--scripted"), lines, folder))
        return servers[-1]

    yield start
    for server in servers:
        assert server.stop() == 0
