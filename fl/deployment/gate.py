"""The SuperLink behind a gate: other machines reach what SuperNodes need, and nothing else.

Flower serves everything on one port: the nodes' API, and those that submit runs, register nodes'
keys and hand out the ServerApp's work, which in the open edition ask nobody who they are. Here the
latter answer only callers on the same machine. So a stranger on the network can neither run code
nor let a node in, and no request is much larger than the pieces in which Flower sends arrays.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware

OPEN = ("/v1/fleet/", "/health")  # paths for every caller
LARGEST = 32 * 2**20  # bytes of a request; Flower cuts arrays in pieces of 5 MiB

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware: 403 for what is not theirs to callers from elsewhere, 413 for too much."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http" or _is_local(scope):
            await self.app(scope, receive, send)
        elif not scope["path"].startswith(OPEN) or ".." in scope["path"]:
            await _answer(send, 403, b"this API answers only on the SuperLink's own machine")
        elif _length(scope) > LARGEST:
            await _answer(send, 413, b"the request is too large")
        else:
            await self.app(scope, _counting(receive), send)


def main() -> None:
    """`flower-superlink`, with the gate before everything else it serves."""
    before = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(Gate), *before())
    flower_superlink()


def _is_local(scope: Scope) -> bool:
    try:
        return ipaddress.ip_address(scope["client"][0]).is_loopback
    except (KeyError, TypeError, ValueError):
        return False


def _length(scope: Scope) -> int:
    """What a request says its length is; 0 where it says none, inf where it is no number."""
    given = dict(scope["headers"]).get(b"content-length", b"0")
    return int(given) if given.isdigit() else LARGEST + 1


def _counting(receive: Receive) -> Receive:
    """Read as usual, until more has come than a request may hold."""
    came = 0

    async def read() -> MutableMapping[str, Any]:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        return {"type": "http.disconnect"} if came > LARGEST else message

    return read


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
