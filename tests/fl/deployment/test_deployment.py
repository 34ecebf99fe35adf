"""Deployed on local processes, a run gives the same results and leaves no process behind."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from flwr.common.config import parse_config_args

from fl.cli import deploy as cli_deploy
from fl.cli import main as cli
from fl.config import ConfigError
from fl.deployment import roles
from fl.deployment.plan import DeploymentPlan
from fl.deployment.roles import Role, down, up
from fl.engines.commands import supernode_command
from fl.engines.processes import free_port

CHECKOUT = Path(__file__).parents[3]
# the exact rounds test the state of clients between rounds
EXACT = {"merge__protocol": "exact", "num_server_rounds": 3, "merge__oversample": 4.0}
PRIVATE = {
    "privacy__mechanism": "dp_gaussian",
    "privacy__noise": "seed",
    "privacy__epsilon": 50.0,
    "privacy__delta": 0.01,
}
ONE_CONFIG = [
    pytest.param({}, id="a round"),
    pytest.param(EXACT, id="exact rounds"),
    pytest.param(PRIVATE, id="private sums"),
]
NODES = [{"partition-id": 0, "data-root": "/a b"}, {"partition-id": 1, "data-root": "/c=d/ü'"}]


@pytest.mark.parametrize("config", NODES)
def test_flower_parses_a_node_s_configuration_unchanged(config: dict) -> None:
    command = supernode_command("127.0.0.1:8000", 9094, config)
    given = command[command.index("--node-config") + 1]
    assert parse_config_args([given]) == config


def test_a_configuration_that_flower_cannot_parse_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot contain quotation marks"):
        supernode_command("127.0.0.1:8000", 9094, {"data-root": '/a"b'})


def test_a_missing_data_root_is_reported_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["deploy", "run", "--data", tmp_path / "none", "--set", "data.kind=folder"]
    words += ["--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["fedpatchcore", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert f"data root {tmp_path / 'none'} is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("changes", ONE_CONFIG)
def test_deployed_with_tls_and_inline_give_the_same_bank_byte_for_byte(
    run, flat, tmp_path, left_over, changes
) -> None:
    inline = run(clients=2, **changes).out
    out = tmp_path / "deployed"
    given = {k: v for k, v in flat(**changes).items() if k not in ("clients", "out", "engine")}
    words = [word for k, v in given.items() for word in ("--set", f"{k}={json.dumps(v)}")]
    command = ["deploy", "run", "--nodes", "2", "--tls", "--out", str(out), *words]
    ended = subprocess.run(
        [sys.executable, "-m", "fl.cli.main", *command],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert left_over() == []
    for name in ("model.safetensors", "partition.json", "scores.csv"):
        assert (inline / name).read_bytes() == (out / name).read_bytes(), name
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (inline, out)]
    for key in ("local", "federated", "centralized", "bank", "threshold", "traffic"):
        assert figures[0][key] == figures[1][key], key


def test_nodes_take_the_gpus_of_the_machine_in_turn(tmp_path, monkeypatch) -> None:
    seen: dict[str, str] = {}

    def start(command: list[str], home: Path, log: Path, env: dict[str, str]) -> subprocess.Popen:
        seen[home.name] = env.get("CUDA_VISIBLE_DEVICES", "all")
        log.write_text(roles.CONNECTED)
        return subprocess.Popen(["sleep", "60"], start_new_session=True)

    monkeypatch.setattr(roles, "start", start)
    nodes = [{"partition-id": i} for i in range(3)]
    for gpus, expected in ((["4", "7"], ["4", "7", "4"]), ([], ["all"] * 3)):
        try:
            up(DeploymentPlan(nodes, join="127.0.0.1:1", gpus=gpus), tmp_path)
        finally:
            down(tmp_path)
        assert [seen[f"supernode-{i}"] for i in range(3)] == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--host", "0.0.0.0"], "so it needs --certs"),
        (["up", "--host", "10.0.0.7"], "runs are submitted on loopback"),
        (["up", "--certs", "nowhere", "--nodes", "1"], "nowhere/node-0/node.key is missing;"),
        (["up", "--certs", "nowhere", "--nodes", "0"], "nowhere/superlink/server.pem is missing;"),
        (["up", "--data", "nowhere"], "--data nowhere is not a folder"),
        (["submit"], "`fedpatchcore deploy up` first"),
        (["submit", "--superlink", "127.0.0.1:9"], "127.0.0.1:9 does not answer"),
        (["admit", "--superlink", "127.0.0.1:9"], "127.0.0.1:9 does not answer"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path, capsys, monkeypatch, words: list[str], said: str
) -> None:
    home = [] if "--superlink" in words else ["--home", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["fedpatchcore", "deploy", *words, *home])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_status_shows_the_roles_from_up_to_down(tmp_path, capsys, monkeypatch, left_over) -> None:
    def deploy(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["x", "deploy", *words, "--home", str(tmp_path / "h")])
        monkeypatch.setattr(cli_deploy.console, "_width", 200)
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr()
        return said.out + said.err

    port = str(free_port())
    try:
        for text in (deploy("up", "--nodes", "1", "--port", port), deploy("status")):
            rows = [line.split() for line in text.splitlines() if line.strip()]
            states = {row[0]: row[1] for row in rows}
            running = dict.fromkeys(["superlink", "serverapp", "supernode-0"], "running")
            assert running.items() <= states.items()
            assert rows[-1][1] == "online"
        assert "already running here: superlink, serverapp, supernode-0" in deploy(
            "up", "--port", port
        )
    finally:
        said = deploy("down")
    assert said.split(": ")[1].split() == ["supernode-0,", "serverapp,", "superlink"]
    assert left_over() == []


def test_status_and_down_of_nothing(tmp_path, capsys, monkeypatch) -> None:
    for word, said in (("status", "nothing runs here"), ("down", "nothing was running")):
        monkeypatch.setattr("sys.argv", ["x", "deploy", word, "--home", str(tmp_path)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
        assert said in capsys.readouterr().out


def test_a_reused_pid_is_not_mistaken_for_the_role() -> None:
    own = psutil.Process()
    assert Role("superlink", own.pid, own.create_time(), 1, "log").process() == own
    assert Role("superlink", own.pid, own.create_time() - 60, 1, "log").process() is None
    assert Role("superlink", 2**22 + 1, own.create_time(), 1, "log").process() is None
