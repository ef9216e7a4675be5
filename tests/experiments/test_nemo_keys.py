"""NeMo's command lines: the same configuration as ours, key by key, and messages for what has no counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cosmos_predict.cli.train import parse_arguments
from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import save_config
from cosmos_predict.config.nemo_keys import KEYS, NO_EFFECT
from cosmos_predict.config.schema import Config, config_tree
from cosmos_predict.errors import ConfigError

NAME = "cosmos_diffusion_7b_text2world_finetune"
# A NeMo override, our key, and the value there.
PAIRS: list[tuple[str, str, Any]] = [
    ("data.path=folder", "dataloader_train.dataset.dataset_dir", "folder"),
    ("data.global_batch_size=64", "trainer.global_batch_size", 64),
    ("data.micro_batch_size=2", "dataloader_train.batch_size", 2),
    ("data.num_workers=0", "dataloader_train.num_workers", 0),
    ("trainer.max_steps=4", "trainer.max_iter", 4),
    ("trainer.log_every_n_steps=1", "trainer.logging_iter", 1),
    ("trainer.strategy.tensor_model_parallel_size=4", "model_parallel.tensor_model_parallel_size", 4),
    ("trainer.strategy.context_parallel_size=2", "model_parallel.context_parallel_size", 2),
    ("trainer.strategy.pipeline_model_parallel_size=1", "model_parallel.pipeline_model_parallel_size", 1),
    ("trainer.strategy.sequence_parallel=False", "model_parallel.sequence_parallel", False),
    ("trainer.strategy.ckpt_async_save=True", "checkpoint.async_save", True),
    ("optim.config.lr=1e-6", "optimizer.lr", 1e-6),
    ("optim.config.weight_decay=0.1", "optimizer.weight_decay", 0.1),
    ("optim.config.adam_beta1=0.8", "optimizer.betas.0", 0.8),
    ("optim.config.adam_beta2=0.95", "optimizer.betas.1", 0.95),
    ("optim.config.adam_eps=1e-10", "optimizer.eps", 1e-10),
    ("optim.config.clip_grad=0.5", "trainer.clip_norm", 0.5),
    ("model.config.num_layers=1", "model.config.pipe_config.net.num_blocks", 1),
    ("resume.restore_config.path=model.pt", "checkpoint.load_path", "model.pt"),
    ("resume.restore_config.path=None", "checkpoint.load_path", None),
    ("resume.restore_config.load_optim_state=True", "checkpoint.load_training_state", True),
    ("resume.restore_config=None", "model.config.model_manager_config.dit_path", ""),
    ("resume.restore_config=None", "checkpoint.load_path", ""),
    ("log.log_dir=runs", "job.root", "runs"),
    ("trainer.callbacks.dirpath=runs", "job.root", "runs"),
    ("resume.resume_from_directory=runs", "job.root", "runs"),
    ("trainer.val_check_interval=50", "trainer.validation_iter", 50),
    ("trainer.val_check_interval=0", "trainer.run_validation", False),
    ("trainer.limit_val_batches=3", "trainer.max_val_iter", 3),
    ("trainer.limit_val_batches=3", "trainer.run_validation", True),
    ("trainer.limit_val_batches=1.0", "trainer.max_val_iter", None),
    ("trainer.limit_val_batches=0", "trainer.run_validation", False),
]


def value_at(config: Config, key: str) -> Any:
    return OmegaConf.select(OmegaConf.create(config_tree(config), flags={"allow_objects": True}), key)


@pytest.mark.parametrize(("nemo", "key", "value"), PAIRS)
def test_a_key_of_nemo_sets_ours(nemo: str, key: str, value: Any) -> None:
    config = compose([f"experiment={NAME}", nemo], report=[])
    found = value_at(config, key)
    assert found == value and type(found) is type(value)


def test_the_table_is_told_whole() -> None:
    without_effect = {"resume.resume_if_exists", "trainer.num_nodes", "trainer.devices"}
    assert {pair[0].partition("=")[0] for pair in PAIRS} == set(KEYS) - without_effect


@pytest.mark.parametrize("off", ["trainer.val_check_interval=0", "trainer.limit_val_batches=0"])
def test_either_zero_switches_validation_off(off: str) -> None:
    """Whatever the other says, in either order."""
    other = "trainer.limit_val_batches=2" if "interval" in off else "trainer.val_check_interval=50"
    for arguments in ([off, other], [other, off]):
        assert compose([f"experiment={NAME}", *arguments]).trainer.run_validation is False
    both = compose([f"experiment={NAME}", "trainer.limit_val_batches=2", "trainer.val_check_interval=50"]).trainer
    assert (both.run_validation, both.validation_iter, both.max_val_iter) == (True, 50, 2)


COMMAND = [
    "data.path=datasets/cached", "trainer.max_steps=4", "optim.config.lr=1e-6", "data.global_batch_size=8",
    "trainer.strategy.tensor_model_parallel_size=2", "resume.restore_config=None", "model.config.num_layers=1",
    "trainer.val_check_interval=0",
]  # fmt: skip


@pytest.mark.parametrize("debug", [[], ["debug=true"]])
def test_both_forms_write_the_same_file(debug: list[str], tmp_path: Path) -> None:
    ours = [
        "dataloader_train.dataset.dataset_dir=datasets/cached", "trainer.max_iter=4", "optimizer.lr=1e-6",
        "trainer.global_batch_size=8", "model_parallel.tensor_model_parallel_size=2", "checkpoint.load_path=",
        "model.config.model_manager_config.dit_path=", "model.config.pipe_config.net.num_blocks=1",
    ]  # fmt: skip
    forms = [
        ["--yes", "--factory", NAME, *COMMAND, *debug],
        [*COMMAND[:3], "--factory", NAME, "--yes", *COMMAND[3:], *debug],
        ["--config", "cosmos_predict/config/default.py", "--", f"experiment={NAME}", *COMMAND, *debug],
        ["--", *ours, *debug, f"experiment={NAME}"],
    ]
    written = set()
    for number, form in enumerate(forms):
        args = parse_arguments(form)
        path = tmp_path / f"{number}.yaml"
        save_config(compose(args.overrides, args.config, report=[]), path)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_the_path_is_that_of_the_dataset() -> None:
    def dataset(*arguments: str) -> Any:
        config = compose([f"experiment={NAME}", *arguments])
        assert config.dataloader_train is not None and config.model is not None
        return config.dataloader_train.dataset, config.model.with_tokenizer

    cache, tokenizer = dataset("data=latent_cache", "data.path=latents")
    assert cache.cache_dir == "latents" and not tokenizer and cache.num_frames == 121
    folder, tokenizer = dataset("data=video_folder", "data.path=clips")
    assert folder.dataset_dir == "clips" and tokenizer and list(folder.video_size) == [704, 1280]
    folder, tokenizer = dataset("data=bridge", "data.path=robot")
    assert folder.dataset_dir == "robot" and folder.split == "train" and tokenizer
    with pytest.raises(ConfigError, match=r"data\.path=x: this experiment's dataset reads no folder"):
        dataset("data=synthetic", "data.path=x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=1e-5", r"unknown config key 'optim\.lr': did you mean .*'optim\.config\.lr'"),
        ("trainer.max_step=4", r"unknown config key 'trainer\.max_step': did you mean 'trainer\.max_steps'"),
        ("data.path=None", r"data\.path=None: expected a folder"),
        ("data.pat=x", r"unknown config key 'data\.pat': did you mean 'data\.path'"),
        ("resume.restore_config=x", r"restore_config=x: expected None \(no base\), or resume\.restore_config\.path=FILE"),
        ("resume.resume_if_exists=False", r"a run always continues what its folder holds.*job\.name=NEW_NAME"),
        ("trainer.limit_val_batches=0.5", r"limit_val_batches=0\.5: expected a whole number \(batches\)"),
        ("trainer.val_check_interval=0.5", r"val_check_interval=0\.5: expected a whole number \(updates\)"),
        ("optim.config.lr=fast", r"optimizer\.lr=fast: expected a number"),
        ("optim.config.lr=None", r"optimizer\.lr=None: expected a number, as 1e-06 is"),
        ("optimizer.betas.0=null", r"optimizer\.betas\.0=null: expected a number"),
        ("trainer.devices=many", r"trainer\.devices=many: expected a whole number of at least 1"),
    ],
)  # fmt: skip
def test_messages(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([f"experiment={NAME}", override])


def test_two_folders_for_one_run() -> None:
    arguments = [f"experiment={NAME}", "log.log_dir=a", "trainer.callbacks.dirpath=b"]
    with pytest.raises(ConfigError, match=r"log\.log_dir=a and trainer\.callbacks\.dirpath=b both say where"):
        compose(arguments)
    assert compose([*arguments[:2], "resume.resume_from_directory=a"]).job.root == "a"


def test_a_resume_that_is_wanted_is_what_happens() -> None:
    plain, told = (
        config_tree(compose([f"experiment={NAME}", *more])) for more in ([], ["resume.resume_if_exists=True"])
    )
    assert plain == told


def test_the_launcher_decides_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    compose([f"experiment={NAME}", "trainer.num_nodes=2", "trainer.devices=8"])  # nothing was launched
    monkeypatch.setenv("WORLD_SIZE", "16")
    for fine in (["trainer.num_nodes=2", "trainer.devices=8"], ["trainer.devices=8"], ["trainer.devices=auto"]):
        compose([f"experiment={NAME}", *fine])
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=2 x trainer\.devices=4 do not make the 16 processes"):
        compose([f"experiment={NAME}", "trainer.num_nodes=2", "trainer.devices=4"])
    with pytest.raises(ConfigError, match=r"trainer\.devices=5 do not make the 16 processes"):
        compose([f"experiment={NAME}", "trainer.devices=5"])


def test_a_factory_and_an_experiment_are_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--factory", NAME, "experiment=tiny_video2world"])
    assert stopped.value.code == 2 and "say the same: give one" in capsys.readouterr().err


@pytest.mark.parametrize("key", NO_EFFECT)
def test_published_keys_without_effect_are_told_and_change_nothing(key: str) -> None:
    name, report = "experiment=predict2_video2world_training_2b_cosmos_nemo_assets", list[str]()
    assert config_tree(compose([name, f"{key}=false"], report=report)) == config_tree(compose([name], report=[]))
    assert len(report) == 1 and report[0].startswith(f"{key}=false: no effect, there ")
    assert compose([name, f"{key}=True", "debug=true"], report=report).job.debug
    for wrong in (f"{key}=maybe", f"{key}=null", f"{key}=0"):
        with pytest.raises(ConfigError, match=r"enabled=\w+: expected true or false"):
            compose([name, wrong], report=[])
    # Their kin, and what is mistyped, are errors as ever.
    for wrong in (f"{key}d=false", f"{key.rpartition('.')[0]}.offload=false"):
        with pytest.raises(ConfigError, match="unknown config key .*did you mean"):
            compose([name, wrong], report=[])
    with pytest.raises(ConfigError, match=f"did you mean .*{key}"):
        compose([name, f"{key}d=false"], report=[])
