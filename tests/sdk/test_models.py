"""Which models there are."""

import json

import openai
import pytest

from server import has_demo_model


def test_the_list_names_what_is_served(client):
    models = client.models.list().data
    assert len(models) >= 1
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in models)
    if has_demo_model():
        assert models[0].id == "tandem-demo"


def test_one_model_by_name(client, model):
    assert client.models.retrieve(model).id == model


def test_an_unknown_name(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-17")
    assert "gpt-17" in error.value.message


def test_a_request_that_names_no_model_gets_the_one_served(server, model):
    answer = server.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 2})
    assert answer["model"] == model


def test_probes(server):
    assert server.get("/health")[0] == 200
    assert server.get("/ready")[0] == 200
    assert json.loads(server.get("/version")[1])["version"]
