"""Configs in files: round trip, hash, and files that try to run something."""

import os
import sys

import pytest

from cosmos_predict import randomness
from cosmos_predict.config import lazy, registry
from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import TORCH_TARGETS, config_hash, config_text, load_config, save_config, to_plain
from cosmos_predict.config.lazy import LazyCall, configurable, instantiate, locate
from cosmos_predict.config.schema import Config, from_tree
from cosmos_predict.errors import ConfigError, CorruptFileError, UnsafeFileError


@pytest.fixture
def marked(monkeypatch):
    """`derive_seed` of the package, marked for the time of a test."""
    monkeypatch.setattr(lazy, "_CONFIGURABLE", dict(lazy._CONFIGURABLE))
    configurable(randomness.derive_seed)


def write(tmp_path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def target(tmp_path, name: str):
    return write(tmp_path, f"model:\n  net:\n  - _target_: {name}\n")


def test_round_trip(tmp_path, marked):
    odd = {
        "text": [
            "1e-6",
            "null",
            "None",
            "yes",
            "12:30",
            "a: b # c",
            "",
            "two\nlines",
            "  pad ",
            "é",
            "0x10",
            "[1",
            "~",
        ],
        "numbers": [1e-6, 1.0, 1, -0.0, float("inf"), 2**-14.5, 10**20],
        "others": [None, True, {0: 0.5, "a": 1}, [], {}],
        "call": LazyCall(randomness.derive_seed)(seed=1),
    }
    registry.register_experiment("odd", {"model": odd, "checkpoint": {"keys_not_to_resume": ["a", "b"]}})
    config = compose(["experiment=odd"])
    save_config(config, tmp_path / "run" / "config.yaml")
    loaded = load_config(tmp_path / "run" / "config.yaml")
    assert to_plain(loaded) == to_plain(config)
    assert repr(to_plain(loaded)["model"]["numbers"]) == repr(to_plain(config)["model"]["numbers"])
    assert loaded.model is not None
    assert loaded.model.call["_target_"] == "cosmos_predict.randomness.derive_seed"
    assert config_text(loaded) == config_text(config) and config_hash(loaded) == config_hash(config)
    assert os.listdir(tmp_path / "run") == ["config.yaml"]


def test_a_loaded_config_can_be_called(tmp_path):
    torch = pytest.importorskip("torch")
    path = write(tmp_path, "optimizer: {_target_: torch.optim.AdamW, lr: 1e-4, betas: [0.9, 0.99]}\n")
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = instantiate(load_config(path).optimizer, [weight])
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["lr"] == 1e-4


def test_torch_classes_are_saved_under_their_allowed_names():
    pytest.importorskip("torch")
    for name in TORCH_TARGETS:
        assert to_plain(LazyCall(locate(name))())["_target_"] == name


def test_hash_ignores_the_job_and_sees_the_rest():
    base = compose(["experiment=demo_video2world"])
    assert len(config_hash(base)) == 16
    assert config_hash(compose(["experiment=demo_video2world", "job.name=other"])) == config_hash(base)
    longer = compose(["experiment=demo_video2world", "trainer.max_iter=2000", "scheduler.cycle=1000"])
    assert config_hash(longer) != config_hash(base)
    assert config_hash(longer, ignore=["trainer.max_iter"]) == config_hash(base, ignore=["trainer.max_iter"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (print, r"model.x=<built-in function print> cannot be written .*LazyCall builds it"),
        (object(), "model.x=.*cannot be written to a config file"),
        ({"_target_": lambda: 1}, "has no importable name: define it at the top level of a module"),
    ],
)
def test_values_that_a_file_cannot_hold(tmp_path, value, message):
    config = from_tree(Config, {"model": {"x": value}})
    with pytest.raises(ConfigError, match=message):
        save_config(config, tmp_path / "config.yaml")
    assert not (tmp_path / "config.yaml").exists()
    assert "model" in config_text(config)  # printing works all the same


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub.load",
        "torch.load",
        "torch.optim.adamw.AdamW",
        "os.system",
        "os:system",
        "builtins.eval",
        "subprocess.Popen",
        "functools.partial",
        "antigravity.webbrowser.open",
        "cosmos_predictor.Thing",
        "cosmos_predict",
        "cosmos_predict.config.__main__.run",
        "cosmos_predict.config.lazy.LazyCall.__init__.__globals__",
        "cosmos_predict.config.lazy.LazyCall.__class__",
        "AdamW",
        "'cosmos_predict.config.lazy.'",
        "''",
        "3",
        "null",
        "[torch.hub.load]",
    ],
)
def test_refused_targets(tmp_path, name):
    path = target(tmp_path, name)
    with pytest.raises(UnsafeFileError, match=r"model.net.0: _target_ .* is refused: .*--allow PACKAGE") as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cosmos_predict.config.files.sys.exit", "reaches the module 'sys' through an attribute"),
        ("cosmos_predict.config.compose.importlib.import_module", "reaches the module 'importlib'"),
        ("cosmos_predict.io.atomic.os.system", "reaches the module 'os' through an attribute"),
        ("cosmos_predict.config.files.Path", "defined in 'pathlib'"),
        ("cosmos_predict.config.lazy.is_dataclass", "defined in 'dataclasses'"),
        ("cosmos_predict.config.files.save_config", "not marked @configurable"),
        ("cosmos_predict.config.lazy.instantiate", "not marked @configurable"),
        ("cosmos_predict.config.files.TORCH_TARGETS.index", "defined in 'None'"),
    ],
)
def test_reaching_something_else_through_our_own_modules(tmp_path, name, reason):
    with pytest.raises(UnsafeFileError, match=reason):
        load_config(target(tmp_path, name))


def test_marking_a_foreign_object_does_not_open_it(tmp_path, marked):
    configurable(os.path.join)
    assert load_config(target(tmp_path, "cosmos_predict.randomness.derive_seed")).model is not None
    with pytest.raises(UnsafeFileError):
        load_config(target(tmp_path, "cosmos_predict.io.atomic.os.path.join"))


def test_the_whole_tree_is_checked_before_anything_is_called(tmp_path, marked):
    deep = (
        "model: {_target_: cosmos_predict.randomness.derive_seed, seed: 1, _recursive_: false,\n"
        "  a: [[{b: {_target_: os.system, command: 'touch x'}}]]}\n"
    )
    with pytest.raises(UnsafeFileError, match=r"model.a.0.0.b: _target_ 'os.system' is refused"):
        load_config(write(tmp_path, deep))


def test_a_wrong_name_in_our_package_is_a_typo_not_an_attack(tmp_path):
    with pytest.raises(ConfigError, match=r"has no 'derive_sed' .*did you mean 'derive_seed'"):
        load_config(target(tmp_path, "cosmos_predict.randomness.derive_sed"))


@pytest.mark.parametrize("text", ["model: {_target_: '${job.name}'}\njob: {name: os.system}", "model: {a: '\\${x:y}'}"])
def test_interpolations_in_a_file_are_refused(tmp_path, text):
    with pytest.raises(UnsafeFileError, match=r"a config file holds values, not interpolations"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch x']", "!!python/name:os.system"])
def test_yaml_tags_build_nothing(tmp_path, tag):
    with pytest.raises(UnsafeFileError, match=r"could not determine a constructor for the tag"):
        load_config(write(tmp_path, f"model: {tag}\n"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "3", "model: {a: 1", "model:\n\t- x", "a: 1\na: 2\n"])
def test_damaged_files(tmp_path, text):
    with pytest.raises(CorruptFileError, match=r"config\.yaml (is not a readable config|holds no config)"):
        load_config(write(tmp_path, text))


def test_binary_and_absent_files(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\x80\x04\x95\xff\xfe")
    with pytest.raises(CorruptFileError, match=r"is not a readable config"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(FileNotFoundError, match=r"no config file .*nowhere.yaml: expected a config.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_fields_of_another_version(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown config key 'trainer.max_iters'"):
        load_config(write(tmp_path, "trainer: {max_iters: 3}\n"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "users_package_of_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("from os import system\nimport os\ndef build(x=1):\n    return x + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "users_package_of_test"
    sys.modules.pop("users_package_of_test", None)


def test_allow_opens_what_the_package_itself_defines(tmp_path, package):
    path = target(tmp_path, f"{package}.build")
    with pytest.raises(UnsafeFileError, match=r"--allow PACKAGE"):
        load_config(path)
    assert package not in sys.modules  # nothing was imported to decide
    report: list[str] = []
    config = compose([], str(path), allow=[package], report=report)
    assert report == [f"--allow {package}: the config file may call what this package defines"]
    assert config.model is not None and instantiate(config.model)["net"] == [2]
    for name in ("system", "os.system"):
        with pytest.raises(UnsafeFileError, match=r"defined in 'posix'|reaches the module 'os'"):
            load_config(target(tmp_path, f"{package}.{name}"), allow=[package])


@pytest.mark.parametrize("name", ["os", "importlib.util", "torch", "cosmos_predict"])
def test_allow_is_not_for_everything(tmp_path, name):
    with pytest.raises(ConfigError, match=f"--allow {name}: too wide"):
        load_config(write(tmp_path, "trainer: {seed: 1}\n"), allow=[name])
