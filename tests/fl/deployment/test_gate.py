"""The gate opens only the nodes' API to other machines, and limits the size of requests."""

import asyncio
from collections.abc import Callable

import pytest

from fl.deployment import gate
from fl.deployment.gate import Gate

AWAY, HERE = "10.1.2.3", "127.0.0.1"


async def echo(scope: dict, receive: Callable, send: Callable) -> None:
    """The app behind the gate; answers with the number of bytes that it received."""
    count, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


def ask(path: str, client: object, pieces: list[bytes] = [b"x"], length: object = None) -> list:  # noqa: B006
    """[status, body] of a request; [] for a dropped connection."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "path": path, "client": client, "headers": headers}
    queue = [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
    queue[-1]["more_body"] = False
    sent: list[dict] = []

    async def receive() -> dict:
        return queue.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(Gate(echo)(scope, receive, send))
    return [sent[0]["status"], sent[1]["body"]] if sent else []


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/push-object", "/health"])
def test_nodes_on_other_machines_reach_their_api(path: str) -> None:
    assert ask(path, (AWAY, 5)) == [200, b"1"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "/docs",
        "/openapi.json",
        "/",
        "/v1/fleet",
        "/v1/fleetx/",
        "//v1/control/start-run",
        "/v1/fleet/../control/start-run",
    ],
)
@pytest.mark.parametrize("client", [(AWAY, 5), ("fe80::1", 5), ("unix", 0), None])
def test_nothing_else_answers_to_other_machines(path: str, client: object) -> None:
    status, body = ask(path, client)
    assert status == 403
    assert b"only on the SuperLink's own machine" in body


@pytest.mark.parametrize("client", [(HERE, 5), ("127.9.9.9", 5), ("::1", 5)])
def test_everything_answers_on_the_superlink_s_machine(client: object) -> None:
    assert ask("/v1/control/start-run", client) == [200, b"1"]


@pytest.mark.parametrize("length", [gate.LARGEST + 1, "many", -1])
def test_a_request_of_too_large_a_content_length_is_refused_unread(length: object) -> None:
    assert ask("/v1/fleet/push-object", (AWAY, 5), length=length)[0] == 413


def test_a_request_that_grows_too_large_is_dropped(monkeypatch) -> None:
    monkeypatch.setattr(gate, "LARGEST", 10)
    assert ask("/v1/fleet/push-object", (AWAY, 5), [b"12345"] * 2) == [200, b"10"]
    assert ask("/v1/fleet/push-object", (AWAY, 5), [b"12345"] * 3) == []
    assert ask("/v1/fleet/push-object", (HERE, 5), [b"12345"] * 3) == [200, b"15"]


def test_flower_has_the_hook_that_the_gate_needs(monkeypatch) -> None:
    from flwr.superlink.main import create_app

    monkeypatch.setattr("fl.deployment.gate.flower_superlink", lambda: None)
    monkeypatch.setattr(gate.extensions, "get_middleware", gate.extensions.get_middleware)
    gate.main()
    outermost = create_app().user_middleware[0]
    assert outermost.cls is Gate
