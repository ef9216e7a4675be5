"""Validation and sample clips: what they measure, what they write, and that training does not notice them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger
from torch.utils.data import default_collate

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data.synthetic import SyntheticDataset
from cosmos_predict.data.video_reader import probe, read_frames, read_image
from cosmos_predict.errors import ConfigError
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.training.sample_callback import SampleClips, _frames
from cosmos_predict.training.trainer import Trainer
from cosmos_predict.training.validation import Validation, band_levels, observing
from tests.training.tiny_run import BASE, metrics, run

STEPS = ["trainer.max_iter=3", "dataloader_train.batch_size=2"]
VALIDATE = ["callbacks=validation", "trainer.validation_iter=2", "trainer.max_val_iter=2"]
SAMPLE = [
    "callbacks=samples",
    "trainer.callbacks.samples.every_n=2",
    "trainer.callbacks.samples.num_steps=2",
    "trainer.callbacks.samples.num_clips=2",
]


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    parts = [trainer.folder.part(part, trainer.progress.iteration) for part in ("trainer", "optim")]
    files = [path for part in parts for path in sorted(part.glob("*.safetensors"))]
    return {f"{path.name}:{name}": value for path in files for name, value in load_tensors(path).items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return run(tmp_path_factory.mktemp("plain"), *STEPS)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    both = [*VALIDATE, *SAMPLE, "trainer.callbacks.validation.weights=both"]
    return run(tmp_path_factory.mktemp("watched"), *STEPS, *both)


def test_training_does_not_notice_validation_and_samples(plain: Trainer, watched: Trainer) -> None:
    """Weights, averages, moments and random states of both runs are the same bits."""
    a, b = state_of(plain), state_of(watched)
    assert a.keys() == b.keys() and any(name.startswith("rng") for name in a)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert watched.model.training
    losses = [[line["loss"] for line in metrics(trainer) if "loss" in line] for trainer in (plain, watched)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_validation_is_published_at_the_start_every_n_and_the_end(watched: Trainer) -> None:
    lines = [line for line in metrics(watched) if "val/loss" in line]
    assert [line["iteration"] for line in lines] == [0, 2, 3]
    names = {f"{band}{kind}" for band in ("", "low/", "mid/", "high/") for kind in ("loss", "mse")}
    assert lines[0].keys() == {"iteration"} | {prefix + name for prefix in ("val/", "val/ema/") for name in names}
    for line in lines:
        assert line["val/loss"] == pytest.approx(np.mean([line[f"val/{band}/loss"] for band in ("low", "mid", "high")]))
        assert line["val/low/mse"] < line["val/mid/mse"] < line["val/high/mse"]
    assert lines[0]["val/ema/loss"] == lines[0]["val/loss"]  # the average starts as the weights
    assert lines[2]["val/ema/loss"] != lines[2]["val/loss"]
    assert lines[2]["val/loss"] != lines[1]["val/loss"] != lines[0]["val/loss"]


def test_repeated_validation_gives_the_same_numbers(watched: Trainer) -> None:
    validation = next(callback for callback in watched.callbacks if isinstance(callback, Validation))
    again = validation.validate(watched)
    last = [line for line in metrics(watched) if "val/loss" in line]
    assert again == {name: value for name, value in last[-2].items() if name != "iteration"}


def test_disabled_validation_leaves_no_numbers(plain: Trainer) -> None:
    assert any(isinstance(callback, Validation) for callback in plain.callbacks)
    assert not any("val/loss" in line for line in metrics(plain))


def test_validation_reads_the_validation_set(tmp_path: Path) -> None:
    """With a validation set of 3 clips and batches of 2, a whole evaluation is two batches of it from its first clip."""
    dataset = (
        "{_target_: cosmos_predict.data.synthetic.SyntheticDataset, num_frames: 5, video_size: [48, 64], length: 3}"
    )
    loader = (
        f"{{_target_: cosmos_predict.data.loader.build_dataloader, dataset: {dataset}, batch_size: 2, num_workers: 0}}"
    )
    trainer = run(tmp_path, f"dataloader_val={loader}", "callbacks=[validation,samples]", "trainer.max_iter=1")
    validation = next(callback for callback in trainer.callbacks if isinstance(callback, Validation))
    assert [batch["sample_number"].tolist() for batch in validation.loader] == [[0, 1], [2, 3]]
    clips = next(callback for callback in trainer.callbacks if isinstance(callback, SampleClips))
    assert torch.equal(clips.batch["video"][0], SyntheticDataset(5, (48, 64))[0]["video"])


def test_without_a_validation_set_the_draws_are_others_and_the_log_says_so(watched: Trainer) -> None:
    validation = next(callback for callback in watched.callbacks if isinstance(callback, Validation))
    numbers = [n for batch in validation.loader for n in batch["sample_number"].tolist()]
    assert numbers == list(range(2**40, 2**40 + 4))
    lines = list[str]()
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING", format="{message}")
    try:
        validation._build_loader(watched)
    finally:
        logger.remove(handle)
    assert any("not held out: set dataloader_val for that" in line for line in lines)


def tiny_model(**pipe) -> WorldModel:
    config = compose(BASE, report=[])
    torch.manual_seed(0)
    model = instantiate(config.model)
    model.config.pipe_config = dataclasses.replace(model.config.pipe_config, **pipe)
    return model


def captioned_batch() -> dict:
    dataset = SyntheticDataset(5, (48, 64))
    text = torch.randn(2, 512, 1024, generator=torch.Generator().manual_seed(0))
    return {**default_collate([dataset[0], dataset[1]]), "t5_text_embeddings": text}


@torch.no_grad()
def test_nothing_is_dropped_in_validation() -> None:
    """A model whose training drops every text and every given frame is validated with both."""
    results = {}
    for share in (0.0, 1.0):
        model = tiny_model(text_dropout=share, video_condition_dropout=share)
        torch.nn.init.normal_(model.net.final_layer.linear.weight, generator=torch.Generator().manual_seed(1))
        validation = Validation()
        validation.loader, validation.end_sample = [captioned_batch()], 2
        results[share] = (
            validation._means(validation._evaluate(model).tolist()),
            float(model.training_loss(captioned_batch()).loss),
        )
    assert results[0.0][0] == results[1.0][0]
    assert results[0.0][1] != results[1.0][1]


@torch.no_grad()
def test_levels_are_quantiles_of_the_training_distribution() -> None:
    model = tiny_model()
    model.config.high_sigma_ratio = 0.0
    x0, condition = model.prepare(captioned_batch())
    levels = band_levels(model, x0, condition, {"low": 0.1, "mid": 0.5, "high": 0.9}, seed=1)
    expected = {
        name: x0.shape[2] ** 0.5 * np.exp(z) for name, z in {"low": -1.2816, "mid": 0.0, "high": 1.2816}.items()
    }
    assert levels == pytest.approx(expected, rel=0.1)


def test_observing_puts_everything_back_after_an_error(plain: Trainer) -> None:
    before = {name: value.clone() for name, value in plain.weights().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="inside"), observing(plain, ema=True):
        assert not plain.model.training and not torch.is_grad_enabled()
        assert not torch.equal(plain.weights()["net.x_embedder.proj.1.weight"], before["net.x_embedder.proj.1.weight"])
        torch.rand(3), np.random.rand(3)
        raise RuntimeError("inside")
    assert plain.model.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in plain.weights().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # type: ignore[index]


def test_sample_clips_are_playable_and_start_with_the_given_frames(watched: Trainer) -> None:
    folder = watched.folder.root / "samples"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"iter_{iteration:09d}.{suffix}" for iteration in (2, 3) for suffix in ("mp4", "png")
    ]
    info = probe(folder / "iter_000000003.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (5, 2 * 48, 64, 16.0)
    picture = read_image(folder / "iter_000000003.png")
    assert picture.shape == (4 * 50, 5 * 66, 3)  # generated, real, generated, real; frames 0..4; gaps of 2
    rows = picture.reshape(4, 50, 5, 66, 3)[:, :48, :, :64].transpose(0, 2, 1, 3, 4).astype(float)
    for generated, real in ((rows[0], rows[1]), (rows[2], rows[3])):
        assert np.array_equal(generated[0], real[0])
        assert np.abs(generated[-1] - real[-1]).mean() > 5  # hardly trained: what follows is its own
    played = read_frames(folder / "iter_000000003.mp4", [0])[0].astype(float)
    assert np.abs(played[:48] - rows[0, 0]).mean() < 5


@pytest.mark.parametrize(
    ("overrides", "frames"),
    [
        (["model.config.pipe_config.net.input_channels=[[latent,16],[padding,1]]"], 5),  # no given frames
        (["dataloader_train.dataset.num_frames=1"], 1),  # images
        (["model.config.pipe_config.family=predict1", "model.config.pipe_config.normalize_condition_latent=true"], 5),
        (["model.config.pipe_config.family=predict2.5"], 5),
    ],
)
def test_other_kinds_of_models_are_validated_and_sampled(tmp_path: Path, overrides: list[str], frames: int) -> None:
    trainer = run(tmp_path, *VALIDATE, *SAMPLE, *overrides, "trainer.max_iter=1")
    assert probe(trainer.folder.root / "samples" / "iter_000000001.mp4").frames == frames
    lines = [line for line in metrics(trainer) if "val/loss" in line]
    assert len(lines) == 2 and np.isfinite(lines[1]["val/high/loss"])
    clips = next(callback for callback in trainer.callbacks if isinstance(callback, SampleClips))
    assert all(video.isfinite().all() for video in clips._generate(trainer))


def test_clips_that_cannot_be_written_do_not_stop_the_run(watched: Trainer) -> None:
    clips = next(callback for callback in watched.callbacks if isinstance(callback, SampleClips))
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message)), format="{level}: {message}")
    blocked = watched.folder.root / "samples" / "iter_000000009.mp4"
    (blocked / "in the way").mkdir(parents=True)
    try:
        clips.draw(watched, 9)
    finally:
        logger.remove(handler)
        shutil.rmtree(blocked)
    assert any(line.startswith("WARNING: generated clips at 9 are not written: ") for line in lines)


def test_views_are_shown_side_by_side(plain: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.model.config.pipe_config, "views", 2)
    video = torch.full((1, 3, 6, 4, 8), -1.0)
    video[:, :, 3:] = 1.0  # the second view is white
    frames = _frames(video, plain)
    assert frames.shape == (1, 3, 4, 16, 3)
    assert (frames[..., :8, :] == 0).all() and (frames[..., 8:, :] == 255).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.callbacks.validation.bands={low: 0}", "must map names to quantiles between 0 and 1"),
        ("trainer.callbacks.validation.weights=mean", "weights='mean' is not one of reg, ema, both"),
        ("+trainer.callbacks.validation.first_sample=-1", "first_sample=-1: expected 0 or more"),
        ("trainer.callbacks.samples.every_n=0", "every_n=0, expected a whole number of at least 1"),
        ("trainer.callbacks.samples.num_steps=0", "num_steps=0, expected a whole number of at least 1"),
    ],
)
def test_bad_options_are_named(override: str, message: str) -> None:
    name = "validation" if "validation" in override else "samples"
    config = compose([*BASE, f"callbacks={name}", override], report=[])
    with pytest.raises(ConfigError, match=message):
        instantiate(config.trainer.callbacks[name])


def test_averaged_weights_without_an_average_are_refused(tmp_path: Path) -> None:
    ema = ["model.config.pipe_config.ema.enabled=false", "trainer.callbacks.validation.weights=ema"]
    with pytest.raises(ConfigError, match="the run keeps no average: set model.config.pipe_config.ema.enabled=true"):
        run(tmp_path, *VALIDATE, *ema)


def test_samples_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sample clips need the video tokenizer"):
        run(tmp_path, "callbacks=samples", "model.with_tokenizer=false")


def test_metrics_file_is_valid_json_by_line(watched: Trainer) -> None:
    text = (watched.folder.root / "metrics.jsonl").read_text()
    assert all(isinstance(json.loads(line)["iteration"], int) for line in text.splitlines())
