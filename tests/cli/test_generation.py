"""The generation commands, in this process, through real files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loguru import logger
from PIL import Image

from cosmos_predict.checkpoint.lora_forms import CONFIG_FILE, network_adapter, write_adapter
from cosmos_predict.checkpoint.lora_runs import file_hash
from cosmos_predict.cli import convert_checkpoint
from cosmos_predict.cli.generation import build_parser
from cosmos_predict.data import video_reader
from cosmos_predict.errors import CheckpointError, ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.lora import inject_lora
from cosmos_predict.pipelines.load import load_world_model
from cosmos_predict.text_encoders.build import build_text_encoder
from tests.cli.generating import run
from tests.pipelines.small import write_clip, write_run
from tests.pipelines.test_load import write_net
from tests.training.tiny_run import run as training_run

QUICK = ["--num_steps", "2", "--device", "cpu", "--guidance", "1"]
SHARED_FLAGS = """--model_size 2B --dit_path x --load_ema --prompt x --negative_prompt x --batch_input_json x --seed 1
 --save_path x --num_gpus 2 --aspect_ratio 9:16 --disable_guardrail --offload_guardrail --benchmark --use_cuda_graphs """
VIDEO_FLAGS = """--resolution 480 --fps 10 --guidance 7.0 --disable_prompt_refiner --offload_prompt_refiner
 --offload_text_encoder --downcast_text_encoder --natten"""

LORA_TARGETS = "--lora_target_modules q_proj,k_proj,v_proj,output_proj,mlp.layer1,mlp.layer2"


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("video") / "run")


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("image") / "run", num_frames=1, channels="[[latent,16],[padding,1]]")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "moving.mp4")


@pytest.fixture()
def warnings() -> Any:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("video2world", SHARED_FLAGS + VIDEO_FLAGS + " --input_path x --num_conditional_frames 5 --num_chunks 6"),
        ("video2world", SHARED_FLAGS + "--use_lora --lora_rank 16 --lora_alpha 16 --init_lora_weights " + LORA_TARGETS),
        (
            "text2world",
            SHARED_FLAGS + VIDEO_FLAGS + " --dit_path_text2image x --dit_path_video2world x --distill_steps 4 "
            "--use_fast_tokenizer",
        ),
        ("text2image", SHARED_FLAGS.replace("2B", "0.6B") + " --distill_steps 4 --use_fast_tokenizer"),
    ],
)
def test_every_published_flag_parses(command: str, flags: str) -> None:
    args = build_parser(command).parse_args(flags.split())
    assert args.seed == 1 and args.disable_guardrail and args.command == command


def test_published_defaults() -> None:
    args = build_parser("video2world").parse_args([])
    assert (args.model_size, args.guidance, args.seed, args.num_conditional_frames, args.num_steps) == (
        "2B",
        7,
        0,
        1,
        35,
    )
    assert (args.input_path, args.save_path) == ("assets/video2world/input0.jpg", "output/generated_video.mp4")
    image = build_parser("text2image").parse_args([])
    assert (image.guidance, image.save_path, image.distill_steps) == (4, "output/generated_image.jpg", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--natten"], r"sparse attention \(natten\) was published for .* 28 and 36 blocks, this one has 1"),
        (["--natten", "--dit_path", ""], "no published checkpoint at .*720p-16fps-natten.pt: give --dit_path PATH"),
        (["--num_gpus", "2"], r"1 process\(es\) run; start them with:\n  torchrun --nproc_per_node=2"),
        (["--cfg_parallel"], "takes an even number of processes, 1 run"),
        (["--save_path", "clip.gif"], "--save_path clip.gif: expected a name that ends in .mp4"),
        (["--input_path", "none.png"], "no input at none.png"),
        (["--input_path", "README.md"], "neither an image nor a video by its name"),
        (["--num_frames", "10"], "9 or 13"),
        (["--size", "50", "64"], "must be a multiple of 16; nearest: 48 x 64"),
        (["--aspect_ratio", "1:1"], "the checkpoint's 48 x 64 is no published size; give --size instead"),
        (["--num_conditional_frames", "13"], "has 12 frames, num_conditional_frames=13 needs at least as many"),
        (["--prompt", "prompt.txt"], "no file prompt.txt: a prompt is text"),
        (["--tokenizer_path", "no.pth"], "no weights of the video tokenizer 'dct' at no.pth: give --tokenizer_path"),
        (["--tokenizer_path", "wan2.1"], "no weights of the video tokenizer 'wan2.1' at .*--config RUN/config.yaml"),
        (["--lora_path", "no_adapters"], "no LoRA adapters at no_adapters"),
        (["--dit_path", ""], "no published checkpoint at .*720p-16fps.pt: give --dit_path PATH"),
    ],
)
def test_bad_options_say_what_to_do(
    run_file: Path, clip: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    fitting = ["--dit_path", run_file, "--input_path", clip, "--save_path", tmp_path / "a.mp4", *QUICK]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("video2world", *fitting, *options)


def test_networks_of_another_task(run_file: Path, image_file: Path, clip: Path, tmp_path: Path) -> None:
    given = ["--prompt", "x", "--save_path", tmp_path / "a", *QUICK]
    for command, options in (
        ("video2world", ["--dit_path", image_file, "--input_path", clip]),
        ("text2world", ["--dit_path", image_file]),
        ("text2world", ["--dit_path_text2image", image_file, "--dit_path_video2world", image_file]),
    ):
        with pytest.raises(ConfigError, match=r"iter_000000001.pt makes images: use text2image.py$"):
            run(command, *options, *given)
    for command, options in (
        ("text2image", ["--dit_path", run_file]),
        ("text2world", ["--dit_path_text2image", run_file, "--dit_path_video2world", run_file]),
    ):
        with pytest.raises(ConfigError, match=r"makes clips of 9 frames: use text2world.py .* or video2world.py$"):
            run(command, *options, *given)
    with pytest.raises(ConfigError, match="takes no given frames .* use text2world.py"):
        run("video2world", "--dit_path", image_file, "--input_path", clip, "--num_frames", 9, *given)
    with pytest.raises(ConfigError, match="--prompt is empty"):
        run("text2image", "--dit_path", image_file, "--prompt", "", *QUICK)
    with pytest.raises(ConfigError, match=r"--use_fast_tokenizer: .* not built here"):
        run("text2image", "--dit_path", image_file, "--prompt", "x", "--use_fast_tokenizer", *QUICK)
    with pytest.raises(ConfigError, match="--natten: an image's attention is never sparse; leave it out"):
        run("text2image", "--dit_path", image_file, "--prompt", "x", "--natten", *QUICK)


def test_a_checkpoint_with_sparse_attention(clip: Path, tmp_path: Path) -> None:
    deep = DiTConfig(model_channels=32, num_blocks=28, num_heads=2, adaln_lora_dim=8, crossattn_emb_channels=1024)
    places = {"dense": "mine", "asked": "other", "named": "model-720p-16fps-natten"}
    given = ["--tokenizer_path", "dct", "--input_path", clip, "--prompt", "a block", "--text_encoder", "tiny", *QUICK]
    given += ["--num_frames", 5, "--size", 64, 112, "--num_steps", 1, "--guidance", 0]
    clips = {}
    for name, place in places.items():
        file, options = write_net(tmp_path / f"{place}.safetensors", deep, 0.3), ["--natten"] if name == "asked" else []
        run("video2world", "--dit_path", file, *given, *options, "--save_path", tmp_path / f"{name}.mp4")
        clips[name] = (tmp_path / f"{name}.mp4").read_bytes()
    assert clips["named"] == clips["asked"] != clips["dense"]


def test_output_folder_that_is_a_file(run_file: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to .*file .*give another --save_path"):
        run("video2world", "--dit_path", run_file, "--input_path", clip, "--save_path", tmp_path / "file" / "a", *QUICK)


# ---- video2world -----------------------------------------------------------------------------------------------------


def test_sidecar_reproduces_the_clip_bit_for_bit(
    run_file: Path, clip: Path, tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("a red block moves\n")
    given = ["--dit_path", run_file, "--load_ema"]
    given += ["--input_path", clip, "--prompt", tmp_path / "prompt.txt", "--negative_prompt", "a still picture"]
    run("video2world", *given, "--seed", 3, "--num_chunks", 2, "--save_path", tmp_path / "one", *QUICK)
    sidecar = json.loads((tmp_path / "one.json").read_text())
    assert video_reader.probe(tmp_path / "one.mp4").frames == sidecar["num_frames"] == 9 + 8
    assert sidecar["hashes"]["dit_path"] == file_hash(run_file, ema=True) and sidecar["sampler"]["guidance"] == 1
    assert sidecar["arguments"]["seed"] == 3 and sidecar["arguments"]["prompt"] == "a red block moves"
    run("video2world", "--from_sidecar", tmp_path / "one.json", "--save_path", tmp_path / "two.mp4")
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    again = json.loads((tmp_path / "two.json").read_text())
    assert {k for k in again["arguments"] if again["arguments"][k] != sidecar["arguments"][k]} == {"save_path"}
    run("video2world", "--from_sidecar", tmp_path / "one.json", "--save_path", tmp_path / "other.mp4", "--seed", 4)
    assert (tmp_path / "other.mp4").read_bytes() != (tmp_path / "one.mp4").read_bytes()
    assert not any("bits may differ" in line for line in warnings)


def test_sidecars_that_do_not_fit(run_file: Path, clip: Path, tmp_path: Path, warnings: list[str]) -> None:
    path, copy = tmp_path / "a.mp4", tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    run("video2world", "--dit_path", run_file, "--input_path", copy, "--save_path", path, *QUICK)
    sidecar = path.with_suffix(".json")
    with pytest.raises(DataError, match=r"written by inference/video2world.py: give it to that"):
        run("text2world", "--from_sidecar", sidecar)
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**content, "environment": {"torch": "1.0"}}))
    run("video2world", "--from_sidecar", sidecar, "--save_path", tmp_path / "b.mp4")
    assert any("made with torch 1.0" in line and "bits may differ" in line for line in warnings)
    video_reader.write_video(copy, np.zeros((3, 48, 64, 3), np.uint8), 16)
    with pytest.raises(DataError, match=r"copy.mp4 was sha256:\w+ and is sha256:\w+ now; .* --input_path"):
        run("video2world", "--from_sidecar", sidecar)
    sidecar.write_text("{}")
    with pytest.raises(DataError, match="not the sidecar of a generated clip"):
        run("video2world", "--from_sidecar", sidecar)
    with pytest.raises(FileNotFoundError, match="no sidecar"):
        run("video2world", "--from_sidecar", tmp_path / "none.json")


def test_interrupted_batch_continues(run_file: Path, clip: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch.json"
    items = [{"input_video": str(clip), "prompt": p, "output_video": str(tmp_path / f"{p}.mp4")} for p in "abc"]
    options = ["--dit_path", run_file, "--batch_input_json", batch, *QUICK]
    batch.write_text(json.dumps(items[:1]))
    run("video2world", *options)
    first = (tmp_path / "a.mp4").stat().st_mtime_ns
    (tmp_path / "b.mp4").write_bytes(b"killed before its sidecar was there")
    batch.write_text(json.dumps(items))
    run("video2world", *options)
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == first
    assert all(video_reader.probe(tmp_path / f"{name}.mp4").frames == 9 for name in "bc")
    assert json.loads((tmp_path / "c.json").read_text())["arguments"]["prompt"] == "c"
    run("video2world", *options, "--seed", 1)  # other settings: all again
    assert (tmp_path / "a.mp4").stat().st_mtime_ns != first


def test_embeddings_in_place_of_text(run_file: Path, clip: Path, tmp_path: Path) -> None:
    text = build_text_encoder("tiny").encode(["a red block"])[0][0]
    write_embedding(tmp_path / "prompt.safetensors", text[text.any(1)].numpy())
    given = ["--dit_path", run_file, "--input_path", clip, *QUICK]
    run("video2world", *given, "--prompt", "a red block", "--save_path", tmp_path / "text.mp4")
    run("video2world", *given, "--prompt", tmp_path / "prompt.safetensors", "--save_path", tmp_path / "file.mp4")
    a, b = (video_reader.read_frames(tmp_path / f"{name}.mp4", range(9)).astype(int) for name in ("text", "file"))
    assert np.abs(a - b).mean() < 1  # the file is float16
    write_embedding(tmp_path / "narrow.npy", np.ones((2, 100), np.float32))
    with pytest.raises(ConfigError, match=r"narrow.npy: an embedding 100 wide, the network takes 1024"):
        run("video2world", *given, "--prompt", tmp_path / "narrow.npy", "--save_path", tmp_path / "x.mp4")


def test_adapters(run_file: Path, clip: Path, tmp_path: Path, warnings: list[str]) -> None:
    net = load_world_model(run_file).model.net
    inject_lora(net, rank=4)
    base = file_hash(run_file)
    for part, shift in (("reg", 0.05), ("ema", -0.05)):
        for name, value in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(value, shift)
        write_adapter(network_adapter(net, base=str(run_file), base_hash=base), tmp_path / "iter_000000001_lora" / part)
    folder = tmp_path / "iter_000000001_lora"
    clips = {}
    for name, options in {
        "none": [],
        "reg": ["--lora_path", folder],
        "ema": ["--lora_path", folder, "--load_ema"],
        "same": ["--lora_path", folder / "ema"],
        "both": ["--lora_path", folder / "reg", folder / "ema"],
    }.items():
        path = tmp_path / f"{name}.mp4"
        given = ["--dit_path", run_file, "--input_path", clip, "--prompt", "a block", "--save_path", path, *QUICK]
        run("video2world", *given, *options)
        clips[name] = path.read_bytes()
    assert clips["ema"] == clips["same"] and len({clips[name] for name in ("none", "reg", "ema")}) == 3
    assert not warnings
    sidecar = json.loads((tmp_path / "both.json").read_text())
    assert [Path(path).name for path in sidecar["arguments"]["lora_path"]] == ["reg", "ema"]
    wanted = rf"give --dit_path PATH, the base of the adapters: {run_file} \({base}\)"
    with pytest.raises(FileNotFoundError, match=wanted):
        run("video2world", "--lora_path", folder, "--input_path", clip, *QUICK)
    other = write_run(tmp_path / "other", num_frames=13)
    given = ["--dit_path", other, "--input_path", clip, "--save_path", tmp_path / "o.mp4", *QUICK]
    weights = torch.load(other, weights_only=True)
    torch.save({name: value * 1.01 for name, value in weights.items()}, other)
    run("video2world", *given, "--lora_path", folder)
    assert any("trained beside a base sha256:" in line for line in warnings)


def test_offload_and_benchmark_change_nothing(run_file: Path, clip: Path, tmp_path: Path) -> None:
    given = ["--dit_path", run_file, "--input_path", clip, *QUICK]
    run("video2world", *given, "--save_path", tmp_path / "a.mp4")
    run("video2world", *given, "--offload", "--benchmark", "--save_path", tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


# ---- images, and video from text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c"])
def test_text2image(image_file: Path, tmp_path: Path, name: str) -> None:
    run("text2image", "--dit_path", image_file, "--prompt", "a block", "--save_path", tmp_path / name, *QUICK)
    path = tmp_path / (name if "." in name else "c.jpg")
    assert Image.open(path).size == (64, 48) and path.with_suffix(".json").is_file()


def test_distilled_text2image(image_file: Path, tmp_path: Path) -> None:
    given = ["--dit_path", image_file, "--prompt", "a block", "--distill_steps", 4, "--device", "cpu", "--seed"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("text2image", *given, seed, "--save_path", tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
    assert json.loads((tmp_path / "a.json").read_text())["sampler"]["solver"] == "distilled"


def test_text2world_in_two_stages_and_in_one(run_file: Path, image_file: Path, tmp_path: Path) -> None:
    given = ["--dit_path_text2image", image_file, "--dit_path_video2world", run_file, "--prompt", "a block", *QUICK]
    run("text2world", *given, "--save_path", tmp_path / "two.mp4")
    run(
        "text2image",
        "--dit_path",
        image_file,
        "--prompt",
        "a block",
        "--save_path",
        tmp_path / "i.png",
        *QUICK[:4],
        "--guidance",
        4,
    )
    image = np.array(Image.open(tmp_path / "i.png"))
    run(
        "video2world",
        "--dit_path",
        run_file,
        "--input_path",
        tmp_path / "i.png",
        "--prompt",
        "a block",
        *QUICK,
        "--save_path",
        tmp_path / "v.mp4",
    )
    assert image.shape == (48, 64, 3)
    assert (tmp_path / "v.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    run("text2world", "--from_sidecar", tmp_path / "two.json", "--save_path", tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    run("text2world", "--dit_path", run_file, "--prompt", "a block", "--save_path", tmp_path / "one.mp4", *QUICK)
    assert video_reader.probe(tmp_path / "one.mp4").frames == 9


@pytest.mark.slow
def test_runs_of_the_trainer(clip: Path, tmp_path: Path) -> None:
    """A trained base and adapters trained beside it: folders and files, regular and EMA weights; another network's."""
    lora = ["model.config.train_architecture=lora", "model.config.lora_rank=4", "scheduler.warm_up_steps=[0]"]
    lora += ["optimizer.lr=0.02"]
    base = training_run(tmp_path / "base", "trainer.max_iter=1").folder
    file = base.exports(1)["both"]
    adapters = training_run(tmp_path / "lora", *lora, f"checkpoint.load_path={file}", "trainer.max_iter=2").folder
    exported = adapters.adapters(2)
    said = json.loads((exported["reg"] / CONFIG_FILE).read_text())
    assert said["auto_mapping"] == {"cosmos_network": "predict2 video2world"}
    config = ["--config", base.root / "config.yaml"]
    for name, options in {"moved.safetensors": [], "diffusers": ["--to", "diffusers"]}.items():
        given = [file, tmp_path / name, "--dtype", "keep", *options]
        convert_checkpoint.run(convert_checkpoint.build_parser().parse_args([str(option) for option in given]))
    clips = {}
    for name, options in {
        "safetensors": [tmp_path / "moved.safetensors", *config],
        "dialect": [tmp_path / "diffusers", *config],
        "base": [base.root],
        "file": [file],
        "base_ema": [base.root, "--load_ema"],
        "lora": [base.root, "--lora_path", adapters.root],
        "lora_reg": [file, "--lora_path", exported["reg"]],
        "lora_ema": [base.root, "--lora_path", adapters.root, "--load_ema"],
        "ema": [file, "--lora_path", exported["ema"]],
    }.items():
        path = tmp_path / f"{name}.mp4"
        run("video2world", "--dit_path", *options, "--input_path", clip, "--save_path", path, *QUICK)
        clips[name] = path.read_bytes()
    assert clips["base"] == clips["file"] == clips["safetensors"] == clips["dialect"]
    assert clips["lora"] == clips["lora_reg"] and clips["lora_ema"] == clips["ema"]
    assert len({clips[name] for name in ("base", "lora", "lora_ema")}) == 3
    with pytest.raises(CheckpointError, match=r"holds LoRA adapters alone: give their base .* --lora_path"):
        run("video2world", "--dit_path", adapters.root, "--input_path", clip, *QUICK)
    other = training_run(
        tmp_path / "other", "trainer.max_iter=1", "model.config.pipe_config.net.model_channels=192"
    ).folder
    given = ["--input_path", clip, "--save_path", tmp_path / "o.mp4", *QUICK]
    with pytest.raises(CheckpointError, match="it belongs to a network of another size"):
        run("video2world", "--dit_path", other.root, "--lora_path", adapters.root, *given)


def test_a_program_ends_with_one_line(run_file: Path) -> None:
    command = [sys.executable, "inference/video2world.py", "--dit_path", str(run_file), "--input_path", "none.png"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "warning" not in line.lower()]
    assert line.startswith("error: no input at none.png: expected an image or a video")
