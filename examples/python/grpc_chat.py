#!/usr/bin/env python3
"""A conversation over gRPC, in Python: what any language with gRPC can do from proto/tandem/v1/inference.proto alone.

    pip install grpcio grpcio-tools
    tandem serve --grpc-port 50051
    examples/python/grpc_chat.py 127.0.0.1:50051 "How many letters are in the word tandem?"

The messages are made from the definition as the program starts; a project of your own would rather keep what
`python -m grpc_tools.protoc` writes.
"""

import os
import pathlib
import sys

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
messages, services = grpc.protos_and_services("tandem/v1/inference.proto")


def credentials():
    """The API key of the environment as metadata, if there is one."""
    key = os.environ.get("TANDEM_API_KEY")
    return [("authorization", f"Bearer {key}")] if key else []


def ask(address, question, timeout_s=300):
    """Yields the answer as it comes: ("reasoning" or "content", text), and last ("finished", usage)."""
    with grpc.insecure_channel(address) as channel:
        inference = services.InferenceStub(channel)
        request = messages.ChatRequest(
            messages=[messages.Message(role=messages.ROLE_USER, content=question)],
            effort=messages.EFFORT_LOW,
            sampling=messages.Sampling(temperature=0, max_tokens=300),
        )
        for event in inference.ChatStream(request, timeout=timeout_s, metadata=credentials()):
            match event.WhichOneof("event"):
                case "reasoning" | "content" as kind:
                    yield kind, getattr(event, kind)
                case "finished":
                    yield "finished", event.finished.usage


def main():
    address, question = sys.argv[1:]
    try:
        for kind, what in ask(address, question):
            if kind == "content":
                print(what, end="", flush=True)
            elif kind == "finished":
                print(f"\n({what.generated_tokens} tokens)")
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
