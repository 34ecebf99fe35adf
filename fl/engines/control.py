"""A client of the SuperLink's control API, which submits runs and registers nodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from fl.engines.commands import CA
from fl.engines.processes import EngineError, bypass_proxy

SILENCE = 2.0  # seconds without data after which a stream raises httpx.ReadTimeout


@dataclass(frozen=True)
class SuperLinkAddress:
    """Where a SuperLink answers."""

    address: str  # host:port on a loopback address; the control API answers only to its own machine
    certs: str = ""  # its folder of certificates; "" without TLS


class _StreamTimeout:
    """Interceptor that bounds the silence of a stream, which Flower lets block for ever.

    httpcore reads the timeout when the body is first read, after all interceptors.
    """

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        response = call_next(context)
        context.request.extensions["timeout"]["read"] = SILENCE
        return response


@contextmanager
def control_client(superlink: SuperLinkAddress) -> Iterator[ControlHttpClient]:
    """Open a client of a SuperLink's control API.

    Raises:
        EngineError: the SuperLink does not answer, or refuses a request.
    """
    address, certs = superlink.address, superlink.certs
    bypass_proxy()
    authority = Path(certs, CA).read_bytes() if certs else None
    client = ControlHttpClient.from_server_address(
        address, not certs, authority, [_StreamTimeout()]
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        reason = error.response.text
        if refusal := FlowerError.from_json(reason):
            reason = " ".join(filter(None, [refusal.message, refusal.public_details]))
        raise EngineError(f"the SuperLink at {address} refuses: {reason}") from error
    except httpx.HTTPError as error:
        raise EngineError(f"the SuperLink at {address} does not answer: {error}") from error
    finally:
        client.close()
