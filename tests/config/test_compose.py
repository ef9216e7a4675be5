"""From arguments to a Config: order of effect, debug, base files."""

import re

import pytest

from cosmos_predict.config import registry
from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import save_config
from cosmos_predict.config.lazy import LazyCall
from cosmos_predict.errors import ConfigError


def test_default_config():
    config = compose([])
    assert re.fullmatch(r"cosmos_predict/debug/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", config.job.path)
    assert config.model is None
    assert compose([], "cosmos_predict/config/default.py").trainer == config.trainer


def test_experiment_over_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the published path works from any folder
    config = compose(["experiment=demo_video2world"], "cosmos_predict/config/default.py")
    assert config.job.path == "posttraining/demo/demo_2b" and config.job.experiment == "demo_video2world"
    assert (config.trainer.max_iter, config.trainer.logging_iter, config.checkpoint.save_iter) == (1000, 10, 500)
    assert config.scheduler is not None and config.scheduler.cycle == 1000


ARGUMENTS = [
    "trainer.max_iter=40", "optimizer.momentum=0.5", "experiment=demo_video2world", "debug=true", "optimizer=sgd",
    "model.net.num_blocks=3", "checkpoint=predict1", "callbacks=[ema,speed]",
]  # fmt: skip


@pytest.mark.parametrize("arguments", [ARGUMENTS, ARGUMENTS[::-1], ARGUMENTS[3:] + ARGUMENTS[:3]])
def test_order_of_effect_whatever_the_order_of_arguments(arguments):
    report: list[str] = []
    config = compose(arguments, report=report)
    assert config.optimizer is not None and config.model is not None and config.scheduler is not None
    # groups after the experiment: the target changes, the kept key stays
    assert config.optimizer == {"_target_": "torch.optim.SGD", "lr": 2**-14.5, "momentum": 0.5}
    assert config.checkpoint.type == "predict1" and config.checkpoint.save_iter == 500
    assert set(config.trainer.callbacks) == {"progress_bar", "ema", "speed"}
    # debug after them, leaves last; interpolations see the last value
    assert config.model.load is None
    assert (config.trainer.max_iter, config.scheduler.cycle, config.model.net.num_blocks) == (40, 40, 3)
    assert report == [
        "debug: no base checkpoint",
        "debug: model.net.num_blocks: 28 -> 1",
        "debug: model.load: base.pt -> None",
        "debug: trainer.max_iter: 1000 -> 2",
    ]


def test_debug_prints_its_changes(capsys):
    compose(["experiment=demo_video2world", "debug=true"])
    assert "debug: trainer.max_iter: 1000 -> 2" in capsys.readouterr().err
    compose(["experiment=demo_video2world", "debug=false"])
    assert capsys.readouterr().err == ""


def test_debug_needs_a_hook():
    with pytest.raises(ConfigError, match=r"debug=true: experiment 'bare' has no debug"):
        compose(["experiment=bare", "debug=true"])
    with pytest.raises(ConfigError, match=r"debug=true: a config without experiment has no debug"):
        compose(["debug=true"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=demo_video2word"], "unknown experiment 'demo_video2word': did you mean 'demo_video2world'"),
        (["optimizer=sdg"], "unknown choice optimizer=sdg: did you mean 'sgd'"),
        (["optimisr=sgd"], "unknown config key 'optimisr': did you mean 'optimizer'"),
        (["trainer.max_itr=1"], "unknown config key 'trainer.max_itr': did you mean 'trainer.max_iter'"),
        (["+trainer.max_itr=1"], "unknown config key 'trainer.max_itr': did you mean 'max_iter'"),
        (["trainer.seed=${trainer.sed}"], r"config key trainer.seed: Interpolation key 'trainer.sed' not found"),
        (["trainer.seed=${"], r"missing BRACE_CLOSE|\$\{"),
        (["experiment=demo_video2world", "model.load=???"], r"model.load has no value \(\?\?\?\): give model.load="),
        (["experiment=demo_video2world", "model.load=???", "job.name=???"], r"give job.name=VALUE model.load=VALUE"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        compose(arguments)


def test_an_experiment_with_an_unknown_section_or_field():
    registry.register_experiment("wrong", {"trainer": {"loggin_iter": 3}})
    with pytest.raises(ConfigError, match=r"unknown config key 'trainer.loggin_iter': did you mean 'logging_iter'"):
        compose(["experiment=wrong"])


def test_resolvers():
    registry.register_experiment(
        "sums",
        {"model": {"_target_": "x.Y", "a": 5, "b": "${add:${model.a},2,1}", "c": "${subtract:${model.a},1,1.5}"}},
    )
    model = compose(["experiment=sums"]).model
    assert model is not None and (model.b, model.c) == (8, 2.5)


def test_removing_a_fixed_field_gives_its_default():
    config = compose(["experiment=demo_video2world", "~trainer.max_iter", "~model", "~trainer.callbacks.progress_bar"])
    assert config.trainer.max_iter == 400_000 and config.model is None and config.trainer.callbacks == {}


def test_a_config_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def make_config():\n    return {'trainer': {'max_iter': 3}}\n")
    config = compose(["trainer.seed=1"], str(path))
    assert (config.trainer.max_iter, config.trainer.seed, config.job.project) == (3, 1, "cosmos_predict")
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"mine.py: the file defines no function make_config\(\)"):
        compose([], str(path))
    with pytest.raises(ConfigError, match=r"no such file; expected a .py file with make_config"):
        compose([], str(tmp_path / "absent.py"))


def test_overrides_on_a_saved_file(tmp_path):
    registry.register_experiment(
        "loader", {"optimizer": LazyCall("torch.optim.AdamW")(lr=0.5)}, debug=lambda c, r: None
    )
    save_config(compose(["experiment=loader"]), tmp_path / "config.yaml")
    path = str(tmp_path / "config.yaml")
    config = compose(
        ["trainer.max_iter=9", "optimizer.weight_decay=0.2", "optimizer=sgd", "optimizer.momentum=0"], path
    )
    assert config.optimizer == {"_target_": "torch.optim.SGD", "lr": 0.5, "momentum": 0, "weight_decay": 0.2}
    assert (config.trainer.max_iter, config.job.experiment) == (9, "loader")
    with pytest.raises(ConfigError, match=r"experiment=bare with --config .*holds a composed experiment already"):
        compose(["experiment=bare"], path)


def test_a_composed_config_is_detached_from_the_registry():
    first = compose(["experiment=demo_video2world"])
    assert first.model is not None
    first.model.net.num_blocks = 99
    second = compose(["experiment=demo_video2world"])
    assert second.model is not None and second.model.net.num_blocks == 28
