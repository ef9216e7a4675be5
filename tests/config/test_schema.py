"""The top-level schema: types, freezing, validation."""

import pytest
from omegaconf.errors import ReadonlyConfigError

from cosmos_predict.config.lazy import LazyCall, lazy_dict
from cosmos_predict.config.schema import Config, config_tree, convert, from_tree
from cosmos_predict.errors import ConfigError


def complete(**sections) -> Config:
    call = LazyCall(dict)(a=1)
    parts = dict.fromkeys(("model", "optimizer", "scheduler", "dataloader_train"), call)
    return from_tree(Config, {"job": {"project": "p", "group": "g", "name": "n"}, **parts, **sections})


def test_path_local_follows_output_root(monkeypatch):
    config = complete()
    monkeypatch.delenv("OUTPUT_ROOT", raising=False)
    assert (config.job.path, config.job.path_local) == ("p/g/n", "checkpoints/p/g/n")
    monkeypatch.setenv("OUTPUT_ROOT", "/data/runs")
    assert config.job.path_local == "/data/runs/p/g/n"
    config.job.root = "mine"  # told by the run itself
    assert config.job.path_local == "mine/p/g/n"


def test_freeze_is_recursive():
    config = complete(checkpoint={"keys_not_to_resume": ["optim"]})
    config.trainer.max_iter = 5
    config.freeze()
    with pytest.raises(AttributeError, match=r"cannot set Config.job: the config is frozen"):
        config.job = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match=r"cannot set TrainerConfig.max_iter: the config is frozen"):
        config.trainer.max_iter = 6
    with pytest.raises(AttributeError):
        config.checkpoint.keys_not_to_resume.append("scheduler")
    assert config.model is not None
    with pytest.raises(ReadonlyConfigError):
        config.model.a = 2
    assert config.trainer.max_iter == 5
    assert config_tree(config)["checkpoint"]["keys_not_to_resume"] == ["optim"]


def test_tree_and_back():
    config = complete(trainer={"callbacks": {"ema": {"every": 2}}})
    assert config_tree(from_tree(Config, config_tree(config))) == config_tree(config)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trainr": {}}, "unknown config key 'trainr': did you mean 'trainer'"),
        ({"trainer": {"max_iters": 3}}, "unknown config key 'trainer.max_iters': did you mean 'max_iter'"),
        ({"trainer": 3}, "trainer=3: expected a section"),
        ({"trainer": {"max_iter": "ten"}}, "trainer.max_iter='ten': expected a whole number, got str"),
        ({"trainer": {"max_iter": 1.5}}, "trainer.max_iter=1.5: expected a whole number"),
        ({"trainer": {"max_iter": None}}, "trainer.max_iter=None: expected a whole number"),
        ({"trainer": {"seed": True}}, "trainer.seed=True: expected a whole number, got bool"),
        ({"trainer": {"run_validation": 1}}, "trainer.run_validation=1: expected true or false, got int"),
        ({"job": {"name": 5}}, "job.name=5: expected text, got int"),
        ({"checkpoint": {"keys_not_to_resume": "optim"}}, "keys_not_to_resume='optim': expected a list of names"),
        ({"model": "dit"}, "model='dit': expected a mapping, got str"),
    ],
)
def test_wrong_types(tree, message):
    with pytest.raises(ConfigError, match=message):
        from_tree(Config, tree)


def test_whole_floats_are_counts_and_null_callbacks_are_none():
    config = from_tree(Config, {"trainer": {"max_iter": 1e3, "callbacks": None}})
    assert config.trainer.max_iter == 1000 and type(config.trainer.max_iter) is int
    assert config.trainer.callbacks == {}


def test_numbers_of_free_types():
    assert type(convert(1, float, "x")) is float and convert(["a"], list[str] | None, "x") == ["a"]
    with pytest.raises(ConfigError, match=r"x='1': expected a number, got str"):
        convert("1", float, "x")


def test_validate_accepts_a_complete_config():
    complete().validate()
    complete(trainer={"run_validation": True}).validate()  # on windows of the training clips


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"job": {"project": "p", "group": "", "name": "n"}}, "job.group='': expected a non-empty relative name"),
        ({"job": {"project": "p", "group": "g", "name": "../n"}}, "job.name='../n': expected"),
        ({"trainer": {"max_iter": 0}}, "trainer.max_iter=0: expected a whole number of at least 1"),
        ({"trainer": {"grad_accum_iter": -1}}, "trainer.grad_accum_iter=-1"),
        ({"trainer": {"seed": -1}}, "trainer.seed=-1: expected 0 or more"),
        ({"model_parallel": {"context_parallel_size": 0}}, "model_parallel.context_parallel_size=0"),
        ({"model_parallel": {"pipeline_model_parallel_size": 2}}, "pipeline_model_parallel_size=2: pipeline"),
        ({"checkpoint": {"type": "predict3"}}, "checkpoint.type='predict3' is not a layout: did you mean 'predict"),
        ({"checkpoint": {"keep_last_k": 0}}, "checkpoint.keep_last_k=0"),
        ({"model": None}, "model is not set: choose an experiment"),
        ({"optimizer": {"lr": 1}}, "optimizer is not set"),
        (
            {"trainer": {"run_validation": True}, "dataloader_val": {"batch_size": 1}},
            "dataloader_val=.* names no loader",
        ),
    ],
)
def test_validate_refuses(sections, message):
    config = complete(**sections)
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_free_sections_hold_callables():
    config = from_tree(Config, {"model": {"net": lazy_dict({"_target_": len})}})
    assert config.model is not None and config.model.net["_target_"] is len
