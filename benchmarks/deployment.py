"""Measure a deployed round on one machine: seconds, bytes on the wire, memory of each role.

Two SuperNodes with synthetic images connect over TLS through a byte counter. Features come from
wide_resnet50_2 with random weights at 224 pixels: 784 patches of 1,536 dimensions per image.
"""

import argparse
import re
import socket
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import torch

from benchmarks.common import device_name, report
from fl.config import CHECKOUT, check_settings, default_settings
from fl.deployment.certificates import make_certificates
from fl.deployment.plan import DeploymentPlan
from fl.deployment.registration import known_nodes
from fl.deployment.roles import down, read_roles, up
from fl.engines.control import SuperLinkAddress
from fl.engines.processes import free_port
from fl.engines.submission import submit
from src.data import write_synthetic
from src.storage.run_metrics import RunMetrics

PATCHES, DIM = 784, 1536
DEADLINE = 1500.0
INTERVAL = 0.1  # seconds between samples of the processes' memory
CHUNK = 2**16
# part of a process's command line -> its role; the first match counts
ROLES = {
    "flwr-clientapp": "ClientApp",
    "flwr-serverapp": "ServerApp",
    "flower-supernode": "SuperNode",
    "fedpatchcore-superlink": "SuperLink",
    "flower-superexec": "SuperExec",
}


class Counter:
    """Forward TCP connections to a local port and count their bytes."""

    def __init__(self, port: int) -> None:
        self.target, self.up, self.down = port, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for source, sink, name in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(
                        target=self._forward, args=(source, sink, name), daemon=True
                    ).start()

    def _forward(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                setattr(self, name, getattr(self, name) + len(chunk))
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Memory:
    """Peak resident memory of a single process of each role, among `pids` and their children."""

    def __init__(self, pids: list[int]) -> None:
        self.pids, self.peak = pids, defaultdict(int)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> dict[str, float]:
        """Stop sampling and return MiB by role."""
        self.stopped.set()
        self.thread.join()
        return {role: round(size / 2**20) for role, size in sorted(self.peak.items())}

    def _watch(self) -> None:
        while not self.stopped.wait(INTERVAL):
            for pid in self.pids:
                with suppress(psutil.Error):
                    root = psutil.Process(pid)
                    for process in [root, *root.children(recursive=True)]:
                        self._record(process)

    def _record(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            command = " ".join(process.cmdline()[:3])
            for name, role in ROLES.items():
                if name in command:
                    self.peak[role] = max(self.peak[role], process.memory_info().rss)
                    return


def main() -> None:
    """Start the roles, run once, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="rows that each client sends")
    parser.add_argument("--images", type=int, default=60, help="training images of each client")
    parser.add_argument("--nodes", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fpc-") as folder:
        metrics = measure(Path(folder), args.rows, args.images, args.nodes)
    device = device_name("cuda" if torch.cuda.is_available() else "cpu")
    report(f"{args.nodes} nodes on one machine", metrics.pop("peak"), {"device": device, **metrics})


def measure(folder: Path, rows: int, images: int, nodes: int) -> dict:
    """Return the metrics of one run, with all state of the roles in `folder`."""
    make_certificates(folder / "certs", ["localhost"], range(nodes))
    homes = [folder / "server", *(folder / f"home-{i}" for i in range(nodes))]
    certs, link = str(folder / "certs"), free_port()
    out, log = folder / "run", folder / "run.log"
    try:
        up(DeploymentPlan([], port=link, certs=certs), homes[0])
        counter = Counter(link)
        for i in range(nodes):
            root = folder / f"plant-{i}"
            write_synthetic(
                root, ("bracket",), train=images, good=4, defects=4, size=(224, 224), seed=i
            )
            node = {"partition-id": i, "data-root": str(root)}
            plan = DeploymentPlan([node], join=f"localhost:{counter.port}", certs=certs)
            up(plan, homes[1 + i])
        superlink = SuperLinkAddress(f"127.0.0.1:{link}", f"{certs}/superlink")
        assert sum(node.status == "online" for node in known_nodes(superlink)) == nodes
        memory = Memory([role.pid for home in homes for role in read_roles(home)])
        before = counter.up, counter.down
        began = time.monotonic()
        submit(
            CHECKOUT, settings(folder, out, rows, images, nodes),
            lambda home, deadline: nullcontext(superlink), log=log, timeout=DEADLINE,
        )  # fmt: skip
        seconds = time.monotonic() - began
        peak = memory.stop()
        text = log.read_text()
    finally:
        for home in homes:
            down(home)
    metrics = RunMetrics.read(out / "metrics.json")
    exchanges = dict(re.findall(r"(train|evaluate): \d+ replies in ([\d.]+) s", text))
    uploads = sum(metrics.traffic.upload_bytes)
    broadcast = nodes * metrics.traffic.broadcast_bytes
    return {
        "rows sent": [client.sent for client in metrics.local.clients],
        "rows merged": metrics.bank.size,
        "seconds in all": round(seconds, 1),
        "seconds of train": float(exchanges["train"]),
        "seconds of evaluate": float(exchanges["evaluate"]),
        "seconds by stage": {k: round(v, 1) for k, v in metrics.content()["seconds"].items()},
        "upload bytes": uploads,
        "broadcast bytes": broadcast,
        "upload factor": round((counter.up - before[0]) / uploads, 4),
        "broadcast factor": round((counter.down - before[1]) / broadcast, 4),
        "peak": {role: {"peak MiB": size} for role, size in peak.items()},
    }


def settings(folder: Path, out: Path, rows: int, images: int, nodes: int) -> dict:
    """Return settings by which each client sends `rows` rows, twice its share."""
    return check_settings(
        default_settings()
        | {
            "clients": nodes,
            "out": str(out),
            "data.shared": False,
            "data.kind": "autovi",
            "data.image-size": "224",
            "model.backbone": "wide_resnet50_2",
            "model.weights": "random",
            "model.coreset-percentage": rows / 2 / (images * PATCHES),
            "merge.oversample": 2.0,
            "evaluate.baselines": False,
            "evaluate.maps": False,
            "cache.dir": str(folder / "cache"),
        }
    ).flat()


if __name__ == "__main__":
    main()
