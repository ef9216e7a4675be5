"""Experiments, groups; what listing imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_predict.config import registry
from cosmos_predict.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
# taken before the fixture of conftest.py replaces it
load_experiments = registry.load_experiments


def test_list_is_sorted_and_builds_nothing():
    def broken():
        raise AssertionError("listing must not build")

    registry.register_experiment("a_broken", broken, summary="never built")
    assert registry.list_experiments() == [
        ("a_broken", "never built"),
        ("bare", ""),
        ("demo_video2world", "a small one"),
    ]


def test_lookup_by_name_gives_fresh_trees():
    experiment = registry.get_experiment("demo_video2world")
    assert experiment.name == "demo_video2world"
    experiment.tree()["trainer"]["max_iter"] = 1
    assert experiment.tree()["trainer"]["max_iter"] == 1000


def test_unknown_names_show_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown experiment 'demo_vide2world': did you mean 'demo_video2world'"):
        registry.get_experiment("demo_vide2world")
    with pytest.raises(ConfigError, match=r"unknown experiment 'demo': did you mean .*'demo_video2world'"):
        registry.get_experiment("demo")
    with pytest.raises(ConfigError, match=r"unknown choice optimizer=adamv: did you mean 'adamw'"):
        registry.apply_choice({"optimizer": None}, "optimizer", "adamv")
    with pytest.raises(ConfigError, match=r"unknown group 'optimiser': did you mean 'optimizer'"):
        registry.apply_choice({"optimizer": None}, "optimiser", "adamw")


def test_names_are_registered_once():
    with pytest.raises(ConfigError, match=r"experiment 'bare' is registered twice"):
        registry.register_experiment("bare", {})
    with pytest.raises(ConfigError, match=r"optimizer=sgd is registered twice"):
        registry.register_choice("optimizer", "sgd", {})
    with pytest.raises(ConfigError, match=r"already acts on 'optimizer', not 'optim'"):
        registry.register_group("optimizer", "optim")


def test_decorator_form():
    @registry.register_experiment("decorated", summary="s")
    def decorated():
        return {"trainer": {"seed": 3}}

    assert registry.get_experiment("decorated").tree() == decorated()


def test_an_experiment_must_be_a_mapping():
    registry.register_experiment("wrong", lambda: [1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ConfigError, match=r"experiment 'wrong' must be a mapping or a function returning one, not list"
    ):
        registry.get_experiment("wrong").tree()


def test_a_choice_with_a_target_replaces_and_keeps_the_named_keys():
    tree = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 3.0, "fused": True}}
    registry.apply_choice(tree, "optimizer", "sgd")
    assert tree["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 3.0, "momentum": 0.9}


def test_a_group_can_act_on_a_deep_node_or_the_whole_config():
    registry.register_group("data", "dataloader_train.dataset", keep=("num_frames",))
    registry.register_choice("data", "synthetic", {"_target_": "x.Synthetic", "num_frames": 5, "size": 8})
    tree = {"dataloader_train": {"dataset": {"_target_": "x.Folder", "num_frames": 93, "path": "p"}}}
    registry.apply_choice(tree, "data", "synthetic")
    assert tree["dataloader_train"]["dataset"] == {"_target_": "x.Synthetic", "num_frames": 93, "size": 8}
    with pytest.raises(ConfigError, match=r"data=synthetic acts on 'dataloader_train.dataset', which this config"):
        registry.apply_choice({"dataloader_train": None}, "data", "synthetic")
    registry.register_group("size", "")
    registry.register_choice("size", "small", {"trainer": {"max_iter": 1}, "model": {"_target_": "x.Small"}})
    whole = {"trainer": {"max_iter": 9, "seed": 1}, "model": {"_target_": "x.Big", "depth": 3}}
    registry.apply_choice(whole, "size", "small")
    assert whole == {"trainer": {"max_iter": 1, "seed": 1}, "model": {"_target_": "x.Small"}}


def test_experiments_folder_is_imported_once_and_not_mistaken(tmp_path, monkeypatch):
    folder = tmp_path / "experiments_of_test"
    folder.mkdir()
    (folder / "one.py").write_text(
        "from cosmos_predict.config.registry import register_experiment\nregister_experiment('from_folder', {})\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    load_experiments(folder)
    load_experiments(folder)
    assert registry.get_experiment("from_folder").tree() == {}
    load_experiments(tmp_path / "absent")
    other = tmp_path / "elsewhere" / "experiments_of_test"
    other.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"the name 'experiments_of_test' is taken by"):
        load_experiments(other)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_config_imports_no_torch():
    modules = sorted(path.stem for path in (REPOSITORY / "cosmos_predict/config").glob("*.py"))
    imports = "; ".join(f"import cosmos_predict.config.{name}" for name in modules if name != "__init__")
    out = run_python(f"{imports}; import sys; print([m for m in ('torch', 'numpy', 'hydra') if m in sys.modules])")
    assert out.strip() == "[]"


def test_listing_and_composing_by_name_import_no_torch():
    code = (
        "import sys\n"
        "from cosmos_predict.config import compose, lazy, registry\n"
        "registry.register_experiment('light', {'model': lazy.LazyCall('torch.nn.Linear')(in_features=1)})\n"
        "assert 'light' in [name for name, _ in registry.list_experiments()]\n"
        "config = compose.compose(['experiment=light', 'model.in_features=2'])\n"
        "assert config.model.in_features == 2\n"
        "print([m for m in ('torchvision', 'transformers', 'decord') if m in sys.modules])\n"
    )
    assert run_python(code).strip() == "[]"
