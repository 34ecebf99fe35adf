"""A node without a registered key, or with another authority, is refused."""

import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest

from fl.deployment.certificates import make_certificates
from fl.deployment.plan import DeploymentPlan
from fl.deployment.registration import known_nodes, register_nodes, unregister_node
from fl.deployment.roles import down, up
from fl.engines.commands import supernode_command
from fl.engines.control import SuperLinkAddress
from fl.engines.processes import EngineError, end, free_port, start

pytestmark = pytest.mark.slow

LIMIT = 40.0  # seconds until a stranger must have been refused


@pytest.fixture(scope="module")
def certs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, ["localhost"], range(1))
    return folder


@pytest.fixture(scope="module")
def port(certs: Path, tmp_path_factory) -> Iterator[int]:
    """Port of a SuperLink with TLS on all addresses; node-0 is registered and stays away."""
    home = tmp_path_factory.mktemp("server")
    number = free_port()
    up(DeploymentPlan([], host="0.0.0.0", port=number, certs=str(certs)), home)
    yield number
    down(home)


def states(port: int, certs: Path) -> dict[str, str]:
    superlink = SuperLinkAddress(f"127.0.0.1:{port}", str(certs / "superlink"))
    return {node.name: node.status for node in known_nodes(superlink)}


def test_nodes_without_a_registered_key_or_with_another_authority_are_refused(
    certs: Path, port: int, tmp_path: Path
) -> None:
    unknown, elsewhere = tmp_path / "unknown", tmp_path / "elsewhere"
    make_certificates(elsewhere, ["localhost"], range(1))
    shutil.copytree(elsewhere / "node-0", unknown)
    shutil.copy(certs / "node-0" / "ca.pem", unknown)  # the right authority, an unregistered key
    given = {"unknown key": str(unknown), "other authority": str(elsewhere / "node-0"), "none": ""}
    started: dict[str, subprocess.Popen] = {}
    try:
        for name, folder in given.items():
            command = supernode_command(
                f"localhost:{port}", free_port(), {"partition-id": 0}, certs=folder
            )
            (tmp_path / name).mkdir()
            started[name] = start(command, tmp_path / name, tmp_path / f"{name}.log")
        ends = time.monotonic() + LIMIT
        for name in ("unknown key", "other authority"):
            assert started[name].wait(max(1, ends - time.monotonic())) != 0
    finally:
        for process in started.values():
            end(process)
    said = {name: (tmp_path / f"{name}.log").read_text() for name in given}
    assert "Failed to activate SuperNode" in said["unknown key"]
    assert "certificate verify failed" in said["other authority"].lower().replace("_", " ")
    assert not [name for name, text in said.items() if "SuperNode ID" in text]
    assert states(port, certs) == {"node-0": "registered"}  # no stranger took its name


def test_an_unregistered_node_cannot_come_back(certs: Path, port: int, tmp_path) -> None:
    make_certificates(certs, ["localhost"], range(2))
    superlink = SuperLinkAddress(f"127.0.0.1:{port}", str(certs / "superlink"))
    assert register_nodes(superlink) == ["node-1"]
    node = DeploymentPlan([{"partition-id": 1}], join=f"localhost:{port}", certs=str(certs))
    try:
        up(node, tmp_path / "home")
        assert states(port, certs)["node-1"] == "online"
        unregister_node(superlink, "node-1")
        with pytest.raises(EngineError, match="knows no node-7"):
            unregister_node(superlink, "node-7")
    finally:
        down(tmp_path / "home")
    command = supernode_command(
        f"localhost:{port}", free_port(), {"partition-id": 1}, certs=str(certs / "node-1")
    )
    again = start(command, tmp_path, tmp_path / "again.log")
    try:
        assert again.wait(LIMIT) != 0
    finally:
        end(again)
    assert (
        register_nodes(superlink) == []
    )  # its key is still in the folder, and not registered again


def test_the_command_line_trusts_no_other_authority(port: int, tmp_path: Path) -> None:
    make_certificates(tmp_path, ["localhost"], range(1))
    with pytest.raises(EngineError, match=r"(?i)certificate.verify.failed"):
        known_nodes(SuperLinkAddress(f"127.0.0.1:{port}", str(tmp_path / "superlink")))
    with pytest.raises(EngineError, match="does not answer"):
        known_nodes(SuperLinkAddress(f"127.0.0.1:{port}"))


def post(certs: Path, address: str, path: str) -> int:
    """Status of a request without a signature."""
    trusting = ssl.create_default_context(cafile=certs / "superlink" / "ca.pem")
    trusting.check_hostname = False  # this address is not in the certificate
    body = PullMessagesRequest().SerializeToString()
    request = urllib.request.Request(f"https://{address}{path}", body)
    request.add_header("content-type", "application/protobuf")
    try:
        with urllib.request.urlopen(request, context=trusting, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_an_unsigned_request_is_refused(certs: Path, port: int) -> None:
    assert post(certs, f"127.0.0.1:{port}", "/v1/fleet/pull-messages") in (401, 403)


def test_the_control_api_answers_to_no_other_machine(certs: Path, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing: it only picks an address of ours
        except OSError:
            pytest.skip("this machine has no address but its loopback's")
        own = outward.getsockname()[0]
    for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"):
        assert post(certs, f"{own}:{port}", path) == 403
    assert post(certs, f"127.0.0.1:{port}", "/v1/control/list-nodes") != 403
