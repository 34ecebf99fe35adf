"""The image and the compose files run the commands of commands.py with the least privileges."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from fl.engines.commands import serverapp_command, superlink_command, supernode_command
from fl.engines.processes import _environment

CHECKOUT = Path(__file__).parents[3]
ALL, NODES = "docker-compose.yml", "docker-compose.nodes.yml"
PROFILES = ("gpu", "cpu")
# what docker-compose.nodes.yml asks for
GIVEN = {"SUPERLINK": "fed.example:443", "PARTITION_ID": "3", "DATA": "/plant", "CERTS": "/keys"}
VARIABLE = re.compile(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}")


def read(file: str, **given: str) -> dict:
    """A compose file with its variables replaced, as compose does it."""

    def value(match: re.Match) -> str:
        name, kind, default = match.groups()
        return given[name] if kind != "-" else given.get(name, default)

    def resolved(node: object) -> object:
        if isinstance(node, dict):
            return {key: resolved(item) for key, item in node.items()}
        if isinstance(node, list):
            return [resolved(item) for item in node]
        return VARIABLE.sub(value, node) if isinstance(node, str) else node

    return resolved(yaml.safe_load((CHECKOUT / file).read_text(encoding="utf-8")))


def started(file: str, profile: str, **given: str) -> dict[str, dict]:
    """The services that a profile starts, without the suffix -cpu of their names."""
    services = read(file, COMPOSE_PROFILES=profile, **given)["services"]
    return {
        name.removesuffix("-cpu"): service
        for name, service in services.items()
        if profile in service.get("profiles", PROFILES)
    }


def everything() -> list:
    """Every service of both files, as a parameter."""
    return [
        pytest.param(service, id=f"{file}:{name}")
        for file in (ALL, NODES)
        for name, service in read(file, **GIVEN)["services"].items()
    ]


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each joined to one line."""
    text = (CHECKOUT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def arguments(instruction: str) -> list[str]:
    """The arguments of all occurrences of an instruction, without its options."""
    found = [rest for name, rest in dockerfile() if name == instruction]
    return [word for rest in found for word in shlex.split(rest) if not word.startswith("--")]


# --- commands ---


@pytest.mark.parametrize("profile", PROFILES)
def test_every_service_runs_its_command(profile: str) -> None:
    local = "127.0.0.1:8000"
    nodes = {
        f"supernode-{i}": supernode_command(
            "superlink:8000", 9094, {"partition-id": i, "data-root": "/data"}, certs="/certs"
        )
        for i in range(2)
    }
    admit = ["fedpatchcore", "deploy", "admit", "--superlink", local, "--certs", "/certs"]
    assert {name: service.get("command") for name, service in started(ALL, profile).items()} == {
        "server": ["sleep", "infinity"],
        "superlink": superlink_command(
            "0.0.0.0", 8000, database="/state/superlink.db", certs="/certs"
        ),
        "serverapp": serverapp_command(local, certs="/certs"),
        "admit": admit,
        **nodes,
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_a_node_on_another_host_runs_its_command(profile: str) -> None:
    (node,) = started(NODES, profile, **GIVEN).values()
    assert node["command"] == supernode_command(
        "fed.example:443", 9094, {"partition-id": 3, "data-root": "/data"}, certs="/certs"
    )


@pytest.mark.parametrize("name", GIVEN)
def test_a_node_on_another_host_needs_all_variables(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        read(NODES, **{key: value for key, value in GIVEN.items() if key != name})


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_one_image_with_its_faiss(profile: str) -> None:
    for service in [*started(ALL, profile).values(), *started(NODES, profile, **GIVEN).values()]:
        assert service["image"] == f"fedpatchcore:{profile}"
        built = {"context": ".", "dockerfile": "docker/Dockerfile", "args": {"FAISS": profile}}
        assert service["build"] == built


def test_every_node_has_its_own_gpu_and_the_cpu_profile_asks_for_none() -> None:
    def gpus(services: dict[str, dict]) -> dict[str, list[str]]:
        return {
            name: device["device_ids"]
            for name, service in services.items()
            if service.get("deploy")
            for device in service["deploy"]["resources"]["reservations"]["devices"]
            if (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        }

    assert gpus(started(ALL, "gpu")) == {
        "serverapp": ["0"], "supernode-0": ["0"], "supernode-1": ["1"]
    }  # fmt: skip
    assert gpus(started(NODES, "gpu", **GIVEN, GPU="5")) == {"supernode": ["5"]}
    assert gpus(started(ALL, "cpu")) == gpus(started(NODES, "cpu", **GIVEN)) == {}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("well", [True, False])
def test_health_checks_ask_the_port_of_their_service(
    profile: str, well: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr("fl.engines.superlink.healthy", lambda *given: asked.append(given) or well)
    services = started(ALL, profile) | started(NODES, profile, **GIVEN)
    checked = {name: s["healthcheck"]["test"] for name, s in services.items() if "healthcheck" in s}
    for name, (*words, code) in checked.items():
        assert words == ["CMD", "python", "-c"]
        with pytest.raises(SystemExit) as caught:
            exec(code, {})
        assert caught.value.code != well
        command = services[name]["command"]
        assert str(asked[-1][0]) == command[command.index("--port") + 1]
    assert checked.keys() == {"superlink", "supernode-0", "supernode-1", "supernode"}


# --- networks ---


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_superlink_s_port_is_published(profile: str) -> None:
    services = started(ALL, profile, SUPERLINK_PORT="443") | started(NODES, profile, **GIVEN)
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"server": ["443:8000"]}


@pytest.mark.parametrize("profile", PROFILES)
def test_only_services_that_use_the_control_api_share_the_superlink_s_loopback(
    profile: str,
) -> None:
    services = started(ALL, profile)
    sharing = {name for name, s in services.items() if s.get("network_mode") == "service:server"}
    assert sharing == {"superlink", "serverapp", "admit"}
    assert all("network_mode" not in s for name, s in services.items() if name not in sharing)
    assert services["server"]["networks"] == {"default": {"aliases": ["superlink"]}}


@pytest.mark.parametrize("profile", PROFILES)
def test_nodes_wait_until_the_superlink_answers_and_their_keys_are_registered(profile: str) -> None:
    services = started(ALL, profile)
    waits = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    healthy = {"server": "service_started", "superlink": "service_healthy"}
    assert waits["serverapp"] == waits["admit"] == healthy
    for i in range(2):
        assert waits[f"supernode-{i}"] == {"admit": "service_completed_successfully"}
    assert services["admit"]["restart"] == "no"


# --- privileges ---


@pytest.mark.parametrize("service", everything())
def test_no_service_has_more_privileges_than_it_needs(service: dict) -> None:
    assert service["user"] == "10001:10001" == arguments("USER")[0]  # the default
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["init"] is True
    more = {"privileged", "cap_add", "devices", "pid", "ipc", "group_add", "env_file"}
    assert not service.keys() & more


@pytest.mark.parametrize("profile", PROFILES)
def test_each_service_mounts_its_own_folders_and_writes_only_state_and_outputs(
    profile: str,
) -> None:
    def mounts(file: str) -> dict[str, set[tuple]]:
        return {
            name: {_mount(volume) for volume in service["volumes"]}
            for name, service in started(file, profile, **GIVEN).items()
            if "volumes" in service
        }

    link = ("./certs/superlink", "/certs", "ro")
    outputs = ("./outputs", "/outputs", "rw")
    assert mounts(ALL) == {
        "superlink": {link, ("superlink-state", "/state", "rw")},
        "serverapp": {link, outputs, ("serverapp-state", "/state", "rw")},
        "admit": {link},
        **{
            f"supernode-{i}": {
                (f"./certs/node-{i}", "/certs", "ro"),
                (f"./data/node-{i}", "/data", "ro"),
                (f"node-{i}-state", "/state", "rw"),
            }
            for i in range(2)
        },
    }
    assert mounts(NODES) == {
        "supernode": {
            ("/keys", "/certs", "ro"),
            ("/plant", "/data", "ro"),
            ("state", "/state", "rw"),
        }
    }


def _mount(volume: str | dict) -> tuple[str, str, str]:
    """Source, target and mode; a missing folder of the host must stop the service."""
    if isinstance(volume, str):
        source, target = volume.split(":")
        assert "/" not in source  # a named volume
        return source, target, "rw"
    assert (volume["type"], volume["bind"]) == ("bind", {"create_host_path": False})
    return volume["source"], volume["target"], "ro" if volume["read_only"] else "rw"


# --- the image ---


def test_the_image_has_a_python_that_the_project_supports() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    images = arguments("FROM")
    assert images
    for image in images:
        version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+", image)
        assert version, f"{image} does not name a full version"
        assert version[1] in SpecifierSet(project["requires-python"])


def test_all_package_versions_of_the_image_come_from_constraints() -> None:
    steps = [step for name, rest in dockerfile() if name == "RUN" for step in rest.split("&&")]
    installs = [" ".join(step.split()) for step in steps if "pip install" in step]
    assert any('--requirements pyproject.toml --extra "$FAISS"' in step for step in installs)
    for step in installs:
        assert "--constraint constraints.txt" in step or "--no-deps --editable ." in step


def test_the_image_has_the_environment_of_local_roles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = dict(word.split("=", 1) for word in arguments("ENV"))
    monkeypatch.setattr("os.environ", {})
    local = _environment(Path(image["FLWR_HOME"]))
    both = image.keys() & local.keys()
    assert both >= {"FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"}
    assert {name: image[name] for name in both} == {name: local[name] for name in both}


def test_the_image_contains_the_checkout_and_nothing_secret() -> None:
    copies = [shlex.split(rest) for name, rest in dockerfile() if name in ("COPY", "ADD")]
    copied = {source for *sources, _ in copies for source in sources}
    assert copied >= {"pyproject.toml", "src", "fl", "configs"}
    assert all((CHECKOUT / source).exists() for source in copied)
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


@pytest.mark.parametrize("file", [ALL, NODES, "docker/Dockerfile"])
def test_no_file_holds_a_secret(file: str) -> None:
    text = (CHECKOUT / file).read_text(encoding="utf-8")
    assert not re.search(r"BEGIN|(password|passwd|secret|token|credential)\S*\s*[:=]", text, re.I)


# --- compose itself ---


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("file", "given"), [(ALL, {}), (NODES, GIVEN)])
def test_compose_reads_the_files_as_these_tests_do(file: str, given: dict, profile: str) -> None:
    command = [*_compose(), "--project-directory", str(CHECKOUT), "-f", str(CHECKOUT / file)]
    env = os.environ | given | {"COMPOSE_PROFILES": profile}
    ended = subprocess.run(
        [*command, "config", "--format", "json"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    services = json.loads(ended.stdout)["services"]
    read_here = started(file, profile, **given)
    assert {name.removesuffix("-cpu"): s["command"] for name, s in services.items()} == {
        name: service["command"] for name, service in read_here.items()
    }


def _compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run(
                [*command, "version"], capture_output=True, text=True, check=False
            )
            if asked.returncode == 0 and "Docker Compose version" in asked.stdout:
                return command
    pytest.skip("docker compose is not installed")
