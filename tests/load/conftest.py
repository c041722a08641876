"""The server under test."""

import json

import pytest

from server import REPOSITORY, Server


def pytest_addoption(parser):
    parser.addoption("--tandem", default=str(REPOSITORY / "target/release/tandem"), help="the program to test")


@pytest.fixture(scope="session")
def serve(request, tmp_path_factory):
    """Starts servers, which must never stumble."""
    servers = []

    def start(**settings):
        log = tmp_path_factory.mktemp("server") / "log"
        servers.append(Server([request.config.getoption("--tandem"), "serve"], log, **settings))
        return servers[-1]

    yield start
    for server in servers:
        assert server.stop() == 0, server.log.read_text()
        assert "panicked" not in server.log.read_text(), server.log.read_text()


@pytest.fixture(scope="session")
def server(serve):
    return serve(context="8192", max_streams="8")


@pytest.fixture(scope="session")
def model(server):
    return json.loads(server.get("/v1/models")[1])["data"][0]["id"]
