"""Training of the first generation: the guides' commands from footage to published files, pixels against cached latents,
and a loss that falls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_predict.cli.cache_latents import build_parser, cache
from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data import video_reader
from cosmos_predict.data.nemo_cache import write_sample
from cosmos_predict.errors import CheckpointError
from cosmos_predict.tokenizers.dct import DCTTokenizer
from cosmos_predict.training.trainer import Trainer

REPOSITORY = Path(__file__).parents[2]
CLIPS = REPOSITORY / "assets" / "robot_arm"
TEXT2WORLD, VIDEO2WORLD = (f"cosmos_diffusion_7b_{task}_finetune" for task in ("text2world", "video2world"))
SMALL = ["--num_frames", "17", "--height", "48", "--width", "64", "--tokenizer", "dct", "--text_encoder", "tiny"]


def train(root: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Train here, and return the lines of metrics.jsonl."""
    monkeypatch.setenv("OUTPUT_ROOT", str(root))
    config = compose(["debug=true", "trainer.logging_iter=1", *overrides], report=[])
    config.validate()
    config.freeze()
    trainer = Trainer(config, device="cpu")
    trainer.train()
    return [json.loads(line) for line in (trainer.folder.root / "metrics.jsonl").read_text().splitlines()]


def command(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUTPUT_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, timeout=240, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def prepared(kind: str, root: Path) -> list[str]:
    """Prepare a dataset as the guide of `kind` says; return the overrides that name it."""
    if kind == "pixels":
        return ["data=video_folder", "text=tiny", f"data.path={CLIPS}"]
    if kind == "episodes":
        return ["data=bridge", "text=tiny", f"data.path={CLIPS}"]
    source, sizes = CLIPS / "videos", SMALL
    if kind == "published frames":
        source, sizes = root / "clips", SMALL[2:]
        frames = np.random.default_rng(0).integers(0, 255, (125, 48, 64, 3), np.uint8)
        video_reader.write_video(source / "moving.mp4", frames, fps=24)
    if kind == "instructions":
        source = root / "instructed"
        (source / "instructions").mkdir(parents=True)
        (source / "videos").mkdir()
        for caption in sorted((CLIPS / "metas").glob("*.txt"))[:4]:
            shutil.copy(CLIPS / "videos" / f"{caption.stem}.mp4", source / "videos")
            content = json.dumps({"language_instruction_0": caption.read_text().strip()})
            (source / "instructions" / f"{caption.stem}.json").write_text(content)
    script = {"instructions": "scripts/prepare_instruction_dataset.py"}.get(kind, "scripts/prepare_dataset.py")
    cached = [sys.executable, script, "--dataset_path", str(source), "--output_path", str(root / "cached")]
    command(*cached, "--num_chunks", "4", *sizes, root=root)
    return [f"data.path={root / 'cached'}"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "train"]


def published_files(run: Path, iteration: int) -> dict[str, Path]:
    """Check that the run's folder holds both published files and the run's state; return the files, `reg` and `ema`."""
    checkpoints = run / "checkpoints"
    files = {part: checkpoints / f"iter_{iteration:09d}_{part}_model.pt" for part in ("reg", "ema")}
    weights = {part: torch.load(path, weights_only=True) for part, path in files.items()}
    query = "net.blocks.block0.blocks.0.block.attn.to_q.0.weight"
    for part, dtype in (("reg", torch.bfloat16), ("ema", torch.float32)):
        net = {name: tensor for name, tensor in weights[part].items() if name.startswith("net.")}
        assert {tensor.dtype for tensor in net.values()} == {dtype}
        assert net[query].shape == (128, 128)  # every part of a divided weight is there, and whole
        assert set(weights[part]) - set(net) == {"logvar.0.freqs", "logvar.0.phases", "logvar.1.weight"}
    assert weights["reg"].keys() == weights["ema"].keys()
    for part in ("trainer", "optim", "scheduler"):
        assert (checkpoints / "state" / part / f"iter_{iteration:09d}").is_dir()
    return files


def clip_of(task: str, weights: Path, root: Path, *flags: str) -> video_reader.VideoInfo:
    """Copy a result as the guides say, and return what is known of the clip that it makes."""
    model = root / f"Cosmos-Predict1-7B-{task}_post-trained"
    model.mkdir()
    shutil.copy(weights, model / "model.pt")
    shutil.copy(weights.parents[1] / "config.yaml", model)  # of no published size
    generate = [sys.executable, f"inference/{task}.py", "--checkpoint_dir", str(root), "--num_steps", "2"]
    generate += [
        "--diffusion_transformer_dir",
        model.name,
        "--video_save_folder",
        str(root),
        "--video_save_name",
        "made",
    ]
    command(*generate, *flags, root=root)
    return video_reader.probe(root / "made.mp4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        (TEXT2WORLD, "cached"),
        (TEXT2WORLD, "published frames"),
        (TEXT2WORLD, "pixels"),
        (VIDEO2WORLD, "cached"),
        (VIDEO2WORLD, "pixels"),
        (VIDEO2WORLD, "instructions"),
        (VIDEO2WORLD, "episodes"),
    ],
)
def test_the_guide_from_footage_to_a_clip(factory: str, kind: str, tmp_path: Path) -> None:
    """Two processes share the network by tensor parallel, since the recipes ask for 8."""
    settings = ["debug=true", *prepared(kind, tmp_path), "trainer.max_steps=4", "optim.config.lr=1e-6"]
    chosen = ["--yes", "--factory", factory] if kind == "cached" else ["--", f"experiment={factory}"]
    ended = command(*TORCHRUN, *chosen, *settings, root=tmp_path)
    assert "tensor_model_parallel_size: 8 -> 2" in ended.stderr
    assert "batch: 1 per step x 1 data-parallel rank(s) x 1 accumulation = 1 samples per update" in ended.stderr
    assert ("reading from" in ended.stderr) is (kind in ("pixels", "episodes"))
    task = factory.split("_")[3]
    files = published_files(tmp_path / f"posttraining/diffusion_{task}/{factory}_debug", 4)
    image = ["--input_image_or_video_path", str(CLIPS / "first_frame.png")] if task == "video2world" else []
    info = clip_of(task, files["ema"], tmp_path, "--prompt", "A sks arm.", *image)
    made_for = {"pixels": 5, "episodes": 5, "published frames": 121}.get(kind, 17)
    assert (info.frames, info.height, info.width) == (made_for, 48, 64)


@pytest.mark.slow
def test_the_predict1_guide_from_clips_to_a_clip(tmp_path: Path) -> None:
    """`text2world_7b_example_cosmos_nemo_assets`: one prompt for all clips; two processes share the weights."""
    data, name, prompt = (
        tmp_path / "cosmos_nemo_assets",
        "text2world_7b_example_cosmos_nemo_assets",
        "A video of sks teal robot.",
    )
    (data / "videos").mkdir(parents=True)
    for video in sorted((CLIPS / "videos").iterdir())[:4]:
        shutil.copy(video, data / "videos")
    script = [sys.executable, "scripts/get_t5_embeddings_from_cosmos_nemo_assets.py", "--dataset_path", str(data)]
    command(*script, "--prompt", prompt, "--text_encoder", "tiny", root=tmp_path)
    assert {path.read_text().strip() for path in (data / "metas").iterdir()} == {prompt}
    assert len(list((data / "t5_xxl").glob("*.pickle"))) == 4
    settings = ["debug=true", f"data.path={data}", "dataloader_train.dataset.num_frames=17", "optimizer.lr=1e-6"]
    ended = command(*TORCHRUN, "--", f"experiment={name}", *settings, root=tmp_path)
    assert "model.config.fsdp_shard_size: 32 -> 2" in ended.stderr and f"reading from {data}" in ended.stderr
    assert "batch: 1 per step x 2 data-parallel rank(s) x 1 accumulation = 2 samples per update" in ended.stderr
    files = published_files(tmp_path / f"posttraining/diffusion_text2world/{name}_debug", 2)
    info = clip_of(
        "text2world", files["ema"], tmp_path, "--prompt", prompt, "--offload_text_encoder_model", "--seed", "1"
    )
    assert (info.frames, info.height, info.width) == (17, 48, 64)


@pytest.mark.slow
def test_the_instruction_guide_from_episodes_to_a_clip(tmp_path: Path) -> None:
    """`video2world_instruction_bridge_57frames` on episodes of at least its 57 frames, and one too short, which is told."""
    data, name, random = tmp_path / "bridge", "video2world_instruction_bridge_57frames", np.random.default_rng(0)
    for split, lengths in {"train": (57, 60, 64, 40), "val": (57,)}.items():
        for number, length in enumerate(lengths):
            video = Path("videos", split, str(number), "rgb.mp4")
            frames = random.integers(0, 255, (length, 64, 80, 3), np.uint8)
            video_reader.write_video(data / video, frames, fps=5)
            annotation = data / "annotation" / split / f"{number}.json"
            annotation.parent.mkdir(parents=True, exist_ok=True)
            content = {"texts": [f"lift block {number}"], "videos": [{"video_path": str(video)}]}
            annotation.write_text(json.dumps(content))
        script = [sys.executable, "scripts/get_t5_embeddings_from_bridge.py", "--dataset_path", str(data)]
        command(*script, "--subset", split, "--text_encoder", "tiny", root=tmp_path)
        assert len(list((data / "annotation" / split).glob("*.pickle"))) == len(lengths)
    settings = ["debug=true", f"data.path={data}", f"dataloader_val.dataset.dataset_dir={data}"]
    settings += ["dataloader_train.dataset.num_frames=57", "dataloader_val.dataset.num_frames=57"]
    settings += ["trainer.run_validation=true", "trainer.validation_iter=2"]
    ended = command(*TORCHRUN, "--", f"experiment={name}", *settings, root=tmp_path)
    assert f"reading from {data}" in ended.stderr and "40 frames" in ended.stderr
    run = tmp_path / f"posttraining/diffusion_video2world_instruction/{name}_debug"
    files = published_files(run, 2)
    assert any("val/high/loss" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    first = ["--input_image_or_video_path", str(CLIPS / "first_frame.png"), "--num_input_frames", "1"]
    info = clip_of("video2world", files["reg"], tmp_path, "--prompt", "lift block 1", *first)
    assert (info.frames, info.height, info.width) == (57, 48, 64)


def losses(lines: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(line["loss"], line["mse"]) for line in lines if "mse" in line]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_latent_cache_trains_as_pixels_do(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, where the windows are the same and the latents are rounded as the cache's are."""
    common = ["experiment=video2world_7b_example_cosmos_nemo_assets", "optimizer.lr=1e-3", "trainer.max_iter=4"]
    folder = f"data.path={CLIPS}"
    flags = ["--output_dir", str(tmp_path / "cache"), "--dtype", dtype, "--device", "cpu", "--start_interval", "6"]
    assert cache(build_parser().parse_args([*flags, "--", *common, "debug=true", "text=tiny", folder])) == 0
    windows = ["dataloader_train.dataset.start_interval=6", f"model.config.latent_dtype={dtype}"]
    pixels = train(tmp_path / "p", *common, "text=tiny", folder, *windows, monkeypatch=monkeypatch)
    latents = ["data=latent_cache", f"data.path={tmp_path / 'cache'}", "model.with_tokenizer=false"]
    cached = train(tmp_path / "c", *common, *latents, monkeypatch=monkeypatch)
    assert len(losses(pixels)) == 4 and losses(pixels) == losses(cached)
    unrounded = train(tmp_path / "u", *common, "text=tiny", folder, *windows[:1], monkeypatch=monkeypatch)
    assert (losses(unrounded) == losses(cached)) is (dtype == "float32")


@pytest.mark.slow
def test_a_nemo_cache_trains_as_pixels_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same windows, in the same order, without text, which that cache rounds too."""
    common = [f"experiment={VIDEO2WORLD}", "trainer.max_iter=4", "dataloader_train.dataset.shuffle=false"]
    common += ["model.config.pipe_config.text_dropout=1"]
    pixels = [*common, "data=video_folder", "text=tiny", f"data.path={CLIPS}"]
    config = compose([*pixels, "debug=true"], report=[])
    assert config.dataloader_train is not None
    dataset, tokenizer = instantiate(config.dataloader_train.dataset), DCTTokenizer(16)
    for number in range(4):
        sample = dataset[number]
        latent = tokenizer.encode(sample["video"][None])[0].to(torch.bfloat16)
        info = {"num_frames": 5, "fps": sample["fps"], "height": 96, "width": 128}
        write_sample(tmp_path / "cached", str(number), [latent], sample["t5_text_embeddings"], info)
    rounded = "model.config.latent_dtype=bfloat16"
    expected = train(tmp_path / "p", *pixels, rounded, monkeypatch=monkeypatch)
    found = train(tmp_path / "c", *common, f"data.path={tmp_path / 'cached'}", monkeypatch=monkeypatch)
    assert len(losses(found)) == 4 and losses(found) == losses(expected)


@pytest.mark.slow
def test_a_copied_result_is_the_next_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..._post-trained/model.pt` as the guides have it; and the run resumes bit for bit in its own layout."""
    name = "text2world_7b_example_cosmos_nemo_assets"
    common = [
        f"experiment={name}",
        "data=synthetic",
        "optimizer.lr=1e-2",
        "trainer.max_iter=4",
        "checkpoint.save_iter=2",
    ]
    whole = losses(train(tmp_path / "one", *common, monkeypatch=monkeypatch))
    train(tmp_path / "two", *common[:3], "trainer.max_iter=2", monkeypatch=monkeypatch)
    assert losses(train(tmp_path / "two", *common, monkeypatch=monkeypatch)) == whole
    runs = [root / f"posttraining/diffusion_text2world/{name}_debug/checkpoints" for root in tmp_path.iterdir()]
    files = ["iter_000000004_reg_model.pt", "iter_000000004_ema_model.pt"]
    one, two = ([torch.load(run / file, weights_only=True) for file in files] for run in runs)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in a)
    base = tmp_path / "checkpoints/Cosmos-Predict1-7B-Text2World_post-trained/model.pt"
    base.parent.mkdir(parents=True)
    shutil.copy(runs[0] / files[0], base)
    still = [*common[:2], "optimizer.lr=0", "trainer.max_iter=1"]
    train(tmp_path / "next", *still, f"checkpoint.load_path={base}", monkeypatch=monkeypatch)
    made = tmp_path / "next/posttraining/diffusion_text2world" / f"{name}_debug/checkpoints/iter_000000001_reg_model.pt"
    weights = torch.load(made, weights_only=True)
    assert weights.keys() == one[0].keys() and all(torch.equal(weights[key], one[0][key]) for key in weights)


def test_a_nemo_checkpoint_goes_through_the_importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nemo" / "weights").mkdir(parents=True)
    (tmp_path / "nemo" / "weights" / ".metadata").write_bytes(b"")
    base = f"resume.restore_config.path={tmp_path / 'nemo'}"
    with pytest.raises(
        CheckpointError, match=r"is a distributed checkpoint of NeMo.*\n.*import_nemo_checkpoint\.py .*weights"
    ):
        train(tmp_path, f"experiment={TEXT2WORLD}", "data=synthetic", base, monkeypatch=monkeypatch)


STEPS, FACTOR = 120, 0.7


@pytest.mark.slow
@pytest.mark.parametrize("logvar", [True, False])
def test_the_loss_falls(logvar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted error falls to FACTOR (measured: 0.39) of what it is over the first tenth, and so does the unweighted one
    (0.45, 0.41), which is logged whatever the loss is."""
    settings = ["data=synthetic", "dataloader_train.batch_size=4", f"trainer.max_iter={STEPS}", "optimizer.lr=3e-3"]
    settings += ["scheduler.warm_up_steps=[10]", f"model.config.loss_add_logvar={str(logvar).lower()}"]
    experiment = "experiment=video2world_7b_example_cosmos_nemo_assets"
    values = losses(train(tmp_path, experiment, *settings, monkeypatch=monkeypatch))
    tenth = STEPS // 10

    def mean(column: int, lines: list[tuple[float, float]]) -> float:
        return sum(line[column] for line in lines) / len(lines)

    assert mean(1, values[-tenth:]) <= FACTOR * mean(1, values[:tenth])
    if not logvar:
        assert mean(0, values[-tenth:]) <= FACTOR * mean(0, values[:tenth])
