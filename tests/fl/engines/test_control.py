"""The client of the control API reports refusals in words, and a stream does not block for ever."""

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import httpx
import pytest
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    StartRunRequest,
    StreamLogsRequest,
    StreamLogsResponse,
)

from fl.engines import control
from fl.engines.control import SuperLinkAddress, control_client
from fl.engines.processes import EngineError, free_port

over = Event()


class Handler(BaseHTTPRequestHandler):
    """Refuses all requests but those for a log, of which it sends one part and falls silent."""

    def do_POST(self) -> None:
        stream = self.path.endswith("stream-logs")
        error = {"code": 15, "detail": "Invalid run configuration.", "extra": "no clients"}
        part = StreamLogsResponse(log_output="one\n", latest_timestamp=1.0).SerializeToString()
        body = len(part).to_bytes(4, "big") + part if stream else json.dumps(error).encode()
        self.send_response(200 if stream else 412)
        self.send_header("content-length", str(len(body) + 1000 * stream))
        self.end_headers()
        self.wfile.write(body)
        if stream:
            over.wait(30)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def superlink() -> Iterator[SuperLinkAddress]:
    over.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield SuperLinkAddress(f"127.0.0.1:{server.server_port}")
        over.set()
        server.shutdown()


def test_a_refusal_has_the_words_of_the_superlink(superlink: SuperLinkAddress) -> None:
    with (
        pytest.raises(EngineError, match=r"refuses: Invalid run configuration. no clients$"),
        control_client(superlink) as client,
    ):
        client.StartRun(StartRunRequest())


def test_a_superlink_that_is_not_there_does_not_answer() -> None:
    with (
        pytest.raises(EngineError, match="does not answer"),
        control_client(SuperLinkAddress(f"127.0.0.1:{free_port()}")) as client,
    ):
        client.ListNodes(ListNodesRequest())


def test_a_silent_stream_times_out(superlink: SuperLinkAddress, monkeypatch) -> None:
    monkeypatch.setattr(control, "SILENCE", 0.3)
    with control_client(superlink) as client:
        parts = iter(client.StreamLogs(StreamLogsRequest(run_id=7)))
        assert next(parts).log_output == "one\n"
        start = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            next(parts)
        assert time.monotonic() - start < 5
