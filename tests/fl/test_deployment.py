"""The roles of a deployment, as local processes: the same run, and nothing of it left behind."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fl import cli
from fl.config import ConfigError
from fl.deployment import Plan, run_deployment
from fl.roles import supernode_command
from fl.submission import RunEnd

CHECKOUT = Path(__file__).parents[2]
NODES = [{"partition-id": 0, "data-root": "/a b"}, {"partition-id": 1, "data-root": "/c=d/ü'"}]


@pytest.mark.parametrize("config", NODES)
def test_a_node_s_configuration_arrives_as_it_was_given(config: dict) -> None:
    command = supernode_command("127.0.0.1:8000", 9094, config)
    given = command[command.index("--node-config") + 1]
    assert parse_config_args([given]) == config


def test_a_configuration_that_flower_cannot_pass_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="no quotation mark"):
        supernode_command("127.0.0.1:8000", 9094, {"data-root": '/a"b'})


def test_a_node_without_data_is_named_before_anything_starts(
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


@pytest.fixture
def deployed(
    app_dir: Path, tmp_path: Path, left_over: Callable[[], list[str]]
) -> Iterator[Callable[..., RunEnd]]:
    """deployed(**config) runs the small app on deployed roles; nothing may be left of it."""
    yield lambda **config: run_deployment(
        app_dir, config, Plan(NODES), log=tmp_path / "run.log", deadline=200
    )
    assert left_over() == []


@pytest.mark.slow
def test_a_run_on_deployed_roles_hears_every_node(deployed: Callable[..., RunEnd]) -> None:
    result = deployed(**{"data.root": "/x"})
    assert (result.ok, result.status, result.error) == (True, "finished:completed", "")
    shown = result.log.read_text(encoding="utf-8").splitlines()
    assert {f"greetings from client {i} /x" for i in range(2)} <= set(shown)


@pytest.mark.slow
def test_the_server_app_s_exception_is_the_error(deployed: Callable[..., RunEnd]) -> None:
    result = deployed(then="raise")
    assert (result.ok, result.status) == (False, "finished:failed")
    assert result.error == "the merge got no bank:\nno client answered"


@pytest.mark.slow
def test_deployed_and_inline_runs_give_the_same_bank_byte_for_byte(tmp_path: Path) -> None:
    shared = ["configs/demo.toml", "--set", f"cache.dir={tmp_path / 'cache'}"]
    outs = {engine: tmp_path / engine for engine in ("inline", "deployed")}
    for command in (
        ["simulate", *shared, "--engine", "inline", "--set", "clients=2", "--out", outs["inline"]],
        ["deploy", "run", *shared, "--nodes", "2", "--out", outs["deployed"]],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "fl.cli", *map(str, command)],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=550, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    for name in ("model.safetensors", "partition.json", "scores.csv"):
        one, other = (out / name for out in outs.values())
        assert one.read_bytes() == other.read_bytes(), name
