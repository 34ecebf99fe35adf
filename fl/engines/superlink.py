"""Start a SuperLink of our own and wait until it answers.

The SuperLink that `flwr run` starts stays behind, with the environment of whoever ran first. This
one is a child process with a home, a port and a Ray folder of its own.

The health checks of the containers import this module, so it must load neither torch nor SciPy.
"""

import http.client
import ssl
import subprocess
import time
from pathlib import Path

from fl.engines.commands import CA
from fl.engines.processes import POLL, EngineError, end, start

LOG = "superlink.log"  # in the home
START_LIMIT = 60.0  # seconds for the SuperLink to answer; it takes 3 to 4 on two idle cores


def serve(
    command: list[str], home: Path, port: int, deadline: float, certs: str = ""
) -> subprocess.Popen[bytes]:
    """Start a SuperLink and wait until it answers on this machine.

    Args:
        command: `superlink_command` with this port and these certs.
        deadline: the time.monotonic() by which it must answer; at most START_LIMIT from now.

    Raises:
        EngineError: it does not start.
    """
    process = start(command, home, home / LOG)
    deadline = min(deadline, time.monotonic() + START_LIMIT)
    try:
        while not healthy(port, certs):
            if process.poll() is not None:
                code = process.returncode
                raise EngineError(f"Flower's SuperLink ended at once, with code {code}")
            if time.monotonic() > deadline:
                raise EngineError("Flower's SuperLink did not answer in time")
            time.sleep(POLL)
    except BaseException:
        end(process)
        raise
    return process


def healthy(port: int, certs: str = "") -> bool:
    """Whether a SuperLink (or a SuperNode) answers on this port of this machine."""
    connection: http.client.HTTPConnection
    if certs:
        context = ssl.create_default_context(cafile=f"{certs}/{CA}")
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=1, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
