"""Settings are refused in one message that says which, why and what is allowed."""

import re
import tomllib
from pathlib import Path

import pytest

from fl.cli.terminal import resolve
from fl.config import (
    CHECKOUT,
    ConfigError,
    Settings,
    check_settings,
    default_settings,
    identity,
    parse_assignments,
    read_config,
)
from fl.config.checks import REMOVED, RENAMED

CONFIGS = sorted((CHECKOUT / "configs").glob("*.toml"))
FREE = {"data.root": "/data"}  # what files in configs/ leave to the user


def refusal(**changes: object) -> str:
    """What is said of the defaults with changes; `__` stands for a dot, `_` for a dash."""
    named = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    with pytest.raises(ConfigError) as caught:
        check_settings(default_settings() | named)
    return str(caught.value)


def test_every_setting_has_a_default_and_every_default_is_a_setting() -> None:
    keys = [field.alias for field in Settings.model_fields.values()]
    assert list(default_settings()) == keys


def test_defaults_are_valid_and_come_back_as_they_were() -> None:
    assert check_settings(default_settings()).flat() == default_settings()


def test_names_in_the_code_follow_the_keys() -> None:
    for name, field in Settings.model_fields.items():
        assert re.sub(r"[.-]", "_", field.alias) == name


def test_a_run_elsewhere_is_the_same_run() -> None:
    first = default_settings()
    moved = {"out": "/a", "cache.dir": "/b", "engine": "inline", "resume": True, "timeout": 9}
    assert identity(first | moved) == identity(first)
    for key, value in (("seed", 1), ("evaluate.maps", False), ("merge.oversample", 2.0)):
        assert identity(first | {key: value}) != identity(first)


def test_every_setting_has_a_description() -> None:
    for field in Settings.model_fields.values():
        assert (field.description or "").endswith("."), field.alias


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_file_is_valid(path: Path) -> None:
    settings = read_config(path)
    assert check_settings(default_settings() | FREE | settings).flat().items() >= settings.items()


def test_there_are_configuration_files() -> None:
    assert {"demo", "mtd-exposure"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("partition.alfa", "partition.alpha"),
        ("coreset-percentage", "model.coreset-percentage"),
        ("min_clients", "min-clients"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(default_settings() | {key: 1})
    assert str(caught.value) == f"{key}: unknown setting; did you mean {near}?"


def test_setting_of_an_earlier_version_is_refused_with_what_to_use_instead() -> None:
    assert refusal(data__even_light=True) == "data.even-light: renamed to data.normalize-brightness"
    assert refusal(privacy__donated=2) == "privacy.donated: renamed to data.public-holdout"
    assert refusal(merge__components=9).startswith("merge.components: removed")
    assert refusal(merge__budget="equal") == (
        "merge.budget = 'equal': removed; use radius, or proportional, the default"
    )
    assert refusal(privacy__cells=8).startswith("privacy.cells: the codebook mechanisms were")


def test_present_names_of_renamed_settings_exist() -> None:
    keys = default_settings().keys()
    assert keys >= set(RENAMED.values())
    assert not keys & {*RENAMED, *REMOVED}


def test_unknown_key_that_is_near_to_none_is_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"^zzz: unknown setting$"):
        check_settings(default_settings() | {"zzz": 1})


def test_missing_key_is_refused() -> None:
    given = default_settings()
    del given["seed"]
    with pytest.raises(ConfigError, match=r"^seed: missing$"):
        check_settings(given)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, "less than 4294967296"),
        ("seed", "many", "valid integer"),
        ("clients", 2.5, "valid integer"),
        ("timeout", 0, "greater than or equal to 1"),
        ("num-server-rounds", 1001, "less than or equal to 1000"),
        ("engine", "dask", "'ray' or 'inline'"),
        ("cpus-per-client", 0, "greater than or equal to 1"),
        ("gpus-per-client", -0.5, "greater than or equal to 0"),
        ("data.kind", "imagenet", "'synthetic', 'autovi', 'folder' or 'visa'"),
        ("data.root", "parts", "absolute path"),
        ("data.root", 5, "valid string"),
        ("cache.dir", "./cache", "absolute path"),
        ("out", "outputs/run", "absolute path"),
        ("model.weights", "weights.pth", "absolute path or random"),
        ("data.image-size", "big", '"256", "HxW" from 32x32 up, "own", or'),
        ("data.image-size", 31, "from 32x32 up"),
        ("data.image-size", "64x64x3", "HxW"),
        ("data.crop", -1, "greater than or equal to 0"),
        ("data.shared", "perhaps", "valid boolean"),
        ("partition.kind", "random", "'iid', 'category', 'attribute', 'dirichlet' or 'quantity'"),
        ("partition.alpha", 0, "greater than 0"),
        ("partition.alpha", float("nan"), "greater than 0"),
        ("model.layers", "layer3,layer2", "shallowest first"),
        ("model.layers", "layer2,layer9", "layer1, layer2, layer3 and layer4"),
        ("model.scope", "global", "'object' or 'shared'"),
        ("model.coreset-percentage", 10, "less than or equal to 1"),
        ("model.coreset-percentage", 0, "greater than 0"),
        ("model.neighbors", 0, "greater than or equal to 1"),
        ("merge.oversample", 0.5, "greater than or equal to 1"),
        ("merge.encoding", "int4", "'float32', 'float16' or 'int8'"),
        ("evaluate.false-alarm-rate", 1, "less than 1"),
    ],
)
def test_value_out_of_range_is_refused_with_key_value_and_what_is_allowed(
    key: str, value: object, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(default_settings() | {key: value})
    message = str(caught.value)
    assert message.startswith(f"{key} = {value!r}: ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"partition__kind": "attribute"}, "partition.column", "name the metadata column"),
        ({"clients": 2, "min_clients": 3}, "min-clients = 3", "only 2 clients"),
        ({"data__kind": "folder"}, "data.root", "name the folder of the folder dataset"),
        ({"data__kind": "autovi"}, "data.root", "name the folder of the autovi dataset"),
        ({"partition__kind": "category"}, "model.scope = object", "set model.scope = shared"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, key: str, what: str) -> None:
    message = refusal(**changes)
    assert message.startswith(key)
    assert what in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge.encoding=int8", "num-server-rounds=9"], "set merge.encoding = float16 or float32"),
        (["num-server-rounds=1"], "it takes rounds"),
    ],
)
def test_settings_that_the_protocol_cannot_run_with_are_refused(words, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^merge.protocol = exact: .*{message}"):
        resolve(None, ["merge.protocol=exact", *words], None)


def test_all_problems_are_in_one_message() -> None:
    message = refusal(seed=-1, sed=3, merge__encoding="int4")
    assert [line.split()[0].rstrip(":") for line in sorted(message.splitlines())] == [
        "merge.encoding",
        "sed",
        "seed",
    ]
    both = refusal(clients=1, min_clients=2, data__kind="folder").splitlines()
    assert [line.split()[0].rstrip(":") for line in both] == ["min-clients", "data.root"]


def test_nodes_that_hold_their_own_data_need_no_data_root() -> None:
    check_settings(default_settings() | {"data.kind": "folder", "data.shared": False})


@pytest.mark.parametrize(
    ("size", "expected"),
    [("256", (256, 256)), (96, (96, 96)), ("64x96", (64, 96)), ("own", None)],
)
def test_image_size_is_a_side_a_rectangle_or_the_image_s_own(size, expected) -> None:
    given = default_settings() | {"data.image-size": size}
    assert check_settings(given).image_size == expected


def test_nested_tables_become_dotted_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\npartition.alpha = 0.1\n[model]\nscope = 'shared'\n[a.b]\nc = true\n")
    expected = {"seed": 1, "partition.alpha": 0.1, "model.scope": "shared", "a.b.c": True}
    assert read_config(path) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"seed 1", "is not TOML"),
        (b"seed = '\xff'", "is not TOML"),
        (b"data.objects = ['a', 'b']", "data.objects: a setting is a text, a number or"),
    ],
)
def test_file_that_holds_no_settings_is_refused(tmp_path, content: bytes, sentence: str) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_config(tmp_path / "run.toml")


def test_file_or_folder_in_place_of_a_configuration_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_config(path)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("partition.alpha = 1e-1", "partition.alpha", 0.1),
        ("data.shared=false", "data.shared", False),
        ("data.root=/a b/c", "data.root", "/a b/c"),
        ('data.objects="all"', "data.objects", "all"),
        ("data.objects=a,b", "data.objects", "a,b"),
        ("data.root=/x=y", "data.root", "/x=y"),
        ("data.root=", "data.root", ""),
        ("data.image-size=64x96", "data.image-size", "64x96"),
    ],
)
def test_assigned_value_is_toml_or_else_text(word: str, key: str, value: object) -> None:
    assert parse_assignments([word]) == {key: value}


@pytest.mark.parametrize("word", ["seed", "--engine"])
def test_assignment_without_a_value_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--set {word}: write key=value")):
        parse_assignments([word])


@pytest.mark.parametrize("value", ["[1,2]", "1979-05-27", "{a=1}"])
def test_assigned_value_that_no_setting_takes_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^seed\b"):
        check_settings(default_settings() | parse_assignments([f"seed={value}"]))


def test_options_win_over_set_which_wins_over_the_file_which_wins_over_defaults(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\nclients = 3\nengine = 'ray'\nout = '/file'\n")
    settings = resolve(path, ["clients=5", "engine=ray"], tmp_path / "option", "inline")
    assert (settings.timeout, settings.seed, settings.clients) == (3600, 1, 5)
    assert (settings.engine, settings.out) == ("inline", str(tmp_path / "option"))


def test_paths_on_the_command_line_may_be_relative(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data.kind=folder", "data.root=parts", "cache.dir=~/c", "privacy.ledger=l.json"]
    settings = resolve(None, words, None, None)
    assert settings.data_root == str(tmp_path / "parts")
    assert settings.cache_dir == str(Path.home() / "c")
    assert settings.privacy_ledger == str(tmp_path / "l.json")
    assert settings.partition_file == ""
    for weights, path in (("random", "random"), ("w.pth", str(tmp_path / "w.pth"))):
        assert resolve(None, [f"model.weights={weights}"], None).model_weights == path
    assert Path(settings.out).parent == tmp_path / "outputs"


def test_pyproject_and_flower_read_the_same_defaults() -> None:
    table = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert table["components"] == {
        "serverapp": "fl.server_app:app",
        "clientapp": "fl.client_app:app",
    }
    assert default_settings().items() >= {"seed": 42, "partition.kind": "iid"}.items()


def test_defaults_outside_a_checkout_say_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkout"):
        default_settings(tmp_path)
