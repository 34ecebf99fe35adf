"""Run the Flower app as it is deployed: a SuperLink and SuperNodes, here as local processes.

result = run_deployment(Path("."), {"seed": 7}, [{"partition-id": 0}, {"partition-id": 1}],
log=Path("run.log"), deadline=3600)
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fl.roles import supernode_command
from fl.submission import RunEnd, Scalar, Show, submit
from fl.superlink import connect, end, free_port, serve, start

NodeConfig = Mapping[str, Scalar]


def run_deployment(
    app_dir: Path,
    run_config: Mapping[str, Scalar],
    nodes: Sequence[NodeConfig],
    *,
    log: Path,
    deadline: float,
    show: Show | None = None,
) -> RunEnd:
    """Start the roles, run the Flower app of a folder on them once, stop them.

    Args:
        nodes: the configuration of each SuperNode: its partition-id, and data-root where its data
            are its own.

    The rest is as for `submit`.
    """
    serving = partial(roles, nodes=nodes)
    return submit(app_dir, run_config, serving, log=log, deadline=deadline, show=show)


@contextmanager
def roles(home: Path, ends: float, nodes: Sequence[NodeConfig]) -> Iterator[None]:
    """A SuperLink and its SuperNodes on this machine, until the block is left.

    Each SuperNode has a home of its own below ours, as on a machine of its own. `ends` is a time of
    time.monotonic. Raises EngineError when the SuperLink does not start.
    """
    port = free_port()
    connect(home, port)
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(serve(home, port, ends))
        for number, config in enumerate(nodes):
            command = supernode_command(f"127.0.0.1:{port}", free_port(), config)
            own = home / f"supernode-{number}"
            own.mkdir()
            started.append(start(command, own, home / f"supernode-{number}.log"))
        yield
    finally:
        for process in reversed(started):
            end(process)
