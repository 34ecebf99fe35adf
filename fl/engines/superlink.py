"""A SuperLink of our own: started, waited for, and found by `flwr`.

`flwr run` would start one that stays behind, with the environment of whoever ran first. This one is
a child of our process, with a home, a port and a Ray folder that no other run sees.
"""

import http.client
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from fl.engines.commands import CA, superlink_command
from fl.engines.processes import POLL, EngineError, end, free_port, start

CONNECTION = "ours"  # the name of our SuperLink in the home's config.toml
LOG = "superlink.log"  # in the home
START_LIMIT = 60.0  # seconds that the SuperLink may take to answer; 3 to 4 on two idle cores


@contextmanager
def superlink(home: Path, ends: float) -> Iterator[None]:
    """A SuperLink for simulations, answering on this machine until the block is left.

    `ends` is a time of time.monotonic. Raises EngineError when it does not start.
    """
    port = free_port()
    process = serve(superlink_command("127.0.0.1", port, simulation=True), home, port, ends)
    try:
        yield
    finally:
        end(process)


def serve(
    command: list[str], home: Path, port: int, ends: float, certs: str = ""
) -> subprocess.Popen[bytes]:
    """Start a SuperLink, wait until it answers on this machine, and let `flwr` find it.

    Args:
        command: `superlink_command` for this port, with these certs.
        ends: time of time.monotonic by which it must answer.

    Raises:
        EngineError: it does not start.
    """
    connect(home, f"127.0.0.1:{port}", certs)
    process = start(command, home, home / LOG)
    try:
        _wait_until_healthy(process, port, certs, min(ends, time.monotonic() + START_LIMIT))
    except BaseException:
        end(process)
        raise
    return process


def connect(home: Path, address: str, certs: str = "") -> None:
    """Let `flwr` find the SuperLink at an address, by the name CONNECTION."""
    way = {"root-certificates": f"{certs}/{CA}"} if certs else {"insecure": True}
    connections = {"superlink": {CONNECTION: {"address": address, **way}}}
    (home / "config.toml").write_text(tomli_w.dumps(connections), encoding="utf-8")


def healthy(port: int, certs: str = "") -> bool:
    """Whether a SuperLink answers on this port of our machine."""
    connection: http.client.HTTPConnection
    if certs:
        trusting = ssl.create_default_context(cafile=f"{certs}/{CA}")
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=1, context=trusting)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait_until_healthy(
    process: subprocess.Popen[bytes], port: int, certs: str, ends: float
) -> None:
    while not healthy(port, certs):
        if process.poll() is not None:
            raise EngineError(
                "not started", f"Flower's SuperLink ended at once, with code {process.returncode}"
            )
        if time.monotonic() > ends:
            raise EngineError("not started", "Flower's SuperLink did not answer in time")
        time.sleep(POLL)
