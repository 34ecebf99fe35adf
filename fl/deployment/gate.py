"""A SuperLink that serves only the SuperNodes' API to other machines.

Flower serves everything on one port. The APIs that submit runs, register nodes and hand out the
ServerApp's work need no credentials in the open edition, so here they answer only to callers on the
same machine: a stranger on the network can neither run code nor register a node. The gate also
refuses requests much larger than the pieces in which Flower sends arrays.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware

OPEN = ("/v1/fleet/", "/health")  # path prefixes open to other machines
LARGEST = 32 * 2**20  # bytes of a request; Flower cuts arrays into pieces of 5 MiB

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware: answers other machines with 403 outside OPEN, and with 413 above LARGEST."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or _is_local(scope):
            await self.app(scope, receive, send)
        elif not scope["path"].startswith(OPEN) or ".." in scope["path"]:
            await _answer(send, 403, b"this API answers only on the SuperLink's own machine")
        elif _length(scope) > LARGEST:
            await _answer(send, 413, b"the request is too large")
        else:
            await self.app(scope, _limited(receive), send)


def main() -> None:
    """Run `flower-superlink` with the gate as its outermost middleware."""
    get_middleware = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(Gate), *get_middleware())
    flower_superlink()


def _is_local(scope: Scope) -> bool:
    try:
        return ipaddress.ip_address(scope["client"][0]).is_loopback
    except (KeyError, TypeError, ValueError):
        return False


def _length(scope: Scope) -> int:
    """The content-length of a request: 0 if missing, too large if it is not a number."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() else LARGEST + 1


def _limited(receive: Receive) -> Receive:
    """Disconnect a request whose body exceeds LARGEST, whatever its content-length."""
    size = 0

    async def read() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return {"type": "http.disconnect"} if size > LARGEST else message

    return read


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
