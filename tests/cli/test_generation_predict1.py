"""Predict1 (Cosmos-1.0) through the generation commands: its flags, checkpoints and files, on runs of its experiments."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cosmos_predict.checkpoint.metadata import METADATA_KEY, config_to_json
from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.cli.generation import build_parser
from cosmos_predict.data import video_reader
from cosmos_predict.data.nemo_cache import write_sample
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.pipelines.load import load_world_model, read_checkpoint
from tests.checkpoint.test_nemo import nemo_state, network_state, write_torch_dist
from tests.cli.generating import run
from tests.pipelines.small import train_predict1, write_clip, write_run

QUICK = ["--num_steps", "2", "--device", "cpu", "--guidance", "1"]
PUBLISHED = """--checkpoint_dir c --diffusion_transformer_dir d --tokenizer_dir t --video_save_name n --video_save_folder f
 --prompt p --batch_input_path b --negative_prompt n --num_steps 35 --guidance 7 --num_video_frames 121 --height 704
 --width 1280 --fps 24 --seed 1 --num_gpus 1 --disable_prompt_upsampler --offload_diffusion_transformer
 --offload_tokenizer --offload_text_encoder_model --offload_prompt_upsampler --offload_guardrail_models
 --disable_guardrail --prompt_upsampler_dir u """
NEMO = """--model m --prompt p --negative_prompt n --subject_name s --guidance 7 --sampler RES --video_save_path o --fps 24
 --height 704 --width 1280 --seed 1 --num_devices 1 --cp_size 1 --num_steps 35 --num_video_frames 121 --tokenizer_dir t
 --cosmos_assets_dir a --prompt_upsampler_dir u --guardrail_dir g --nemo_checkpoint n --enable_prompt_upsampler """


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_predict1(tmp_path_factory.mktemp("text"), "text2world_7b_example_cosmos_nemo_assets")


@pytest.fixture(scope="module")
def video_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_predict1(tmp_path_factory.mktemp("video"), "video2world_7b_example_hdvila")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "moving.mp4")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def copied(file: Path, folder: Path, config: Path | None) -> Path:
    """Do the guide's copy step."""
    folder.mkdir(parents=True)
    shutil.copy(file, folder / "model.pt")
    if config:
        shutil.copy(config, folder / "config.yaml")
    return folder


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("text2world", PUBLISHED + "--word_limit_to_skip_upsampler 250"),
        ("video2world", PUBLISHED + "--input_image_or_video_path i --num_input_frames 9"),
        ("text2world", NEMO),
        ("video2world", NEMO + "--conditioned_image_or_video_path i --num_input_frames 9"),
    ],
)
def test_every_published_flag_parses(command: str, flags: str) -> None:
    args = build_parser(command).parse_args(flags.split())
    assert (args.num_frames, args.height, args.width, args.fps, args.num_gpus) == (121, 704, 1280, 24, 1)
    assert command == "text2world" or (args.input_path, args.num_conditional_frames) == ("i", 9)
    assert args.given[0] == flags.split()[0]


def test_the_family_tells_what_is_left_open(text_run: RunFolder) -> None:
    """Published defaults: outputs/output.mp4, seed 1, Euler; the prompt beside the clip."""
    run("text2world", "--dit_path", text_run.root, "--prompt", "a block", "--num_steps", 2, "--device", "cpu")
    path = Path("outputs/output.mp4")
    info = video_reader.probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (5, 48, 64, 24)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert path.with_suffix(".txt").read_text() == "a block"
    assert (sidecar["arguments"]["seed"], sidecar["sampler"]["guidance"]) == (1, 7)
    assert (sidecar["sampler"]["solver"], sidecar["sampler"]["sigma_min"]) == ("euler", 0.0002)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_every_form_of_a_checkpoint(text_run: RunFolder) -> None:
    """The run folder, its files, and the guide's copies of these make the same clips; EMA and regular differ."""
    files, config = text_run.exports(2), text_run.root / "config.yaml"
    copied(files["reg"], Path("checkpoints/Cosmos-Predict1-7B-Text2World_post-trained"), config)
    copied(files["ema"], Path("other/Cosmos-Predict1-7B-Text2World"), None)
    name = "Cosmos-Predict1-7B-Text2World_post-trained"
    clips = {}
    for key, options in {
        "folder": ["--dit_path", text_run.root],
        "reg": ["--dit_path", files["reg"]],
        "copy": ["--checkpoint_dir", "checkpoints", "--diffusion_transformer_dir", name],
        "place": ["--diffusion_transformer_dir", f"checkpoints/{name}"],
        "path": ["--dit_path", f"checkpoints/{name}"],
        "model": ["--cosmos_assets_dir", "checkpoints", "--model", name, "--tokenizer_dir", "dct"],
        "ema_folder": ["--dit_path", text_run.root, "--load_ema"],
        "ema": ["--nemo_checkpoint", files["ema"], "--num_devices", 1, "--cp_size", 1, "--enable_prompt_upsampler"],
        "ema_copy": ["--checkpoint_dir", "other", "--config", config],
    }.items():
        run("text2world", *options, "--prompt", "a block", "--save_path", f"{key}.mp4", *QUICK)
        clips[key] = Path(f"{key}.mp4").read_bytes()
    assert clips["folder"] == clips["reg"] == clips["copy"] == clips["place"] == clips["path"] == clips["model"]
    assert clips["ema_folder"] == clips["ema"] == clips["ema_copy"] != clips["reg"]


def test_a_run_on_cached_latents_makes_clips_of_their_size(tmp_path: Path) -> None:
    """In debug form the cache's frames and size are the experiment's; where the cache is gone, the published ones."""
    for number in range(2):
        info = {"height": 480, "width": 640, "fps": 24.0, "num_frames": 17, "video_path": "a.mp4", "start_frame": 0}
        latents = [torch.randn(16, 5, 4, 6).bfloat16()] * 2
        write_sample(tmp_path / "cached", str(number), latents, torch.ones(3, 1024), info)
    data = f"data.path={tmp_path / 'cached'}"
    trained = train_predict1(Path("runs"), "cosmos_diffusion_7b_text2world_finetune", data=data)
    run("text2world", "--dit_path", trained.root, "--prompt", "x", *QUICK)
    info = video_reader.probe("outputs/output.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (17, 32, 48, 24)
    shutil.rmtree(tmp_path / "cached")
    found = read_checkpoint(trained.root)
    assert (found.clip.num_frames, found.clip.video_size) == (121, (704, 1280))


def test_adapters(video_run: RunFolder, clip: Path) -> None:
    base = video_run.exports(2)["reg"]
    overrides = [f"checkpoint.load_path={base}"]
    lora = train_predict1(Path("lora"), "video2world_7b_lora_example_cosmos_nemo_assets", *overrides)
    copied(base, Path("checkpoints/base"), video_run.root / "config.yaml")
    given = ["--diffusion_transformer_dir", "base", "--input_image_or_video_path", clip, *QUICK]
    for name, options in {"base": [], "lora": ["--lora_path", lora.root]}.items():
        run("video2world", *given, *options, "--video_save_name", name)
    assert Path("outputs/base.mp4").read_bytes() != Path("outputs/lora.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"holds LoRA adapters alone: give their base .* --lora_path"):
        run("text2world", "--diffusion_transformer_dir", lora.root, "--prompt", "x", *QUICK)


# ---- what is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "frames"), [(1, 5), (9, 17), (9, 25)])
def test_given_frames_start_the_clip(video_run: RunFolder, clip: Path, count: int, frames: int) -> None:
    given = ["--input_image_or_video_path", clip, "--num_input_frames", count, "--num_video_frames", frames]
    run("video2world", "--dit_path", video_run.root, *given, "--prompt", "x", "--video_save_name", "a", *QUICK)
    made = video_reader.read_frames("outputs/a.mp4", range(frames)).astype(int)
    last = video_reader.read_frames(clip, range(12 - count, 12)).astype(int)
    assert len(made) == frames and np.abs(made[:count] - last).mean() < 12
    assert np.abs(made[count - 1] - last[-1]).mean() < np.abs(made[count - 1] - last[0] * 0).mean()


def test_an_image_and_another_size(video_run: RunFolder, clip: Path) -> None:
    Image.fromarray(np.full((60, 90, 4), 128, np.uint8), "RGBA").save("in.png")
    given = ["--dit_path", video_run.root, "--input_image_or_video_path", "in.png", "--prompt", "x", *QUICK]
    run("video2world", *given, "--height", 32, "--width", 96, "--fps", 12, "--video_save_name", "sized")
    run("video2world", *given, "--width", 32)
    info, other = video_reader.probe("outputs/sized.mp4"), video_reader.probe("outputs/output.mp4")
    assert (info.height, info.width, info.fps) == (32, 96, 12) and (other.height, other.width) == (48, 32)
    first = video_reader.read_frames("outputs/sized.mp4", [0]).astype(int)
    assert np.abs(first - 191).mean() < 12  # half transparent grey on white


def test_samplers_and_sidecars(video_run: RunFolder, clip: Path) -> None:
    given = ["--dit_path", video_run.root, "--input_image_or_video_path", clip, "--prompt", "x", *QUICK]
    for sampler in ("RES", "Euler"):
        run("video2world", *given, "--sampler", sampler, "--video_save_name", sampler, "--height", 32)
    run("video2world", *given, "--video_save_name", "default", "--height", 32)
    assert Path("outputs/Euler.mp4").read_bytes() == Path("outputs/default.mp4").read_bytes()
    assert Path("outputs/Euler.mp4").read_bytes() != Path("outputs/RES.mp4").read_bytes()
    sidecar = json.loads(Path("outputs/RES.json").read_text())
    assert (sidecar["sampler"]["solver"], sidecar["sampler"]["sigma_min"]) == ("2ab", 0.002)
    run("video2world", "--from_sidecar", "outputs/RES.json", "--video_save_name", "again")
    assert Path("outputs/again.mp4").read_bytes() == Path("outputs/RES.mp4").read_bytes()
    again = json.loads(Path("outputs/again.json").read_text())["arguments"]
    assert {key for key, value in again.items() if value != sidecar["arguments"][key]} == {"save_path"}
    run("video2world", "--from_sidecar", "outputs/RES.json", "--sampler", "Euler")
    assert Path("outputs/RES.mp4").read_bytes() == Path("outputs/Euler.mp4").read_bytes()


def test_batch_of_lines(video_run: RunFolder, clip: Path) -> None:
    lines = [{"prompt": "one", "visual_input": str(clip)}, {"prompt": "two ü", "visual_input": str(clip), "seed": 5}]
    Path("batch.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    given = ["--dit_path", video_run.root, "--batch_input_path", "batch.jsonl", "--video_save_folder", "made", *QUICK]
    run("video2world", *given, "--num_input_frames", 5, "--num_video_frames", 9)
    assert sorted(path.name for path in Path("made").iterdir()) == [
        f"{i}.{s}" for i in "01" for s in ("json", "mp4", "txt")
    ]
    assert Path("made/1.txt").read_text(encoding="utf-8") == "two ü"
    seeds = [json.loads(Path(f"made/{i}.json").read_text())["arguments"]["seed"] for i in range(2)]
    assert seeds == [1, 5] and video_reader.probe("made/0.mp4").frames == 9
    before = Path("made/0.mp4").stat().st_mtime_ns
    run("video2world", *given, "--num_input_frames", 5, "--num_video_frames", 9)
    assert Path("made/0.mp4").stat().st_mtime_ns == before


def test_subject_name(text_run: RunFolder) -> None:
    given = ["--dit_path", text_run.root, "--subject_name", "teal robot", *QUICK]
    run("text2world", *given, "--prompt", "It waves.", "--video_save_name", "a")
    run("text2world", *given, "--video_save_name", "b")
    assert Path("outputs/a.txt").read_text() == "A video of sks teal robot. It waves."
    assert Path("outputs/b.txt").read_text() == "A video of sks teal robot."
    run("text2world", "--from_sidecar", "outputs/a.json", "--video_save_name", "c")
    assert Path("outputs/c.mp4").read_bytes() == Path("outputs/a.mp4").read_bytes()
    write_embedding("p.safetensors", np.ones((2, 1024), np.float32))
    with pytest.raises(ConfigError, match="--subject_name goes before a prompt of text, and p.safetensors is an embed"):
        run("text2world", *given, "--prompt", "p.safetensors")


def test_a_video_network_from_text_alone(video_run: RunFolder) -> None:
    run("text2world", "--dit_path", video_run.root, "--prompt", "x", *QUICK, "--num_video_frames", 9)
    assert video_reader.probe("outputs/output.mp4").frames == 9


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input_image_or_video_path", "none.mp4"], "no input at none.mp4: expected an image or a video"),
        (["--input_image_or_video_path", "bad.png"], "bad.png: not a readable image"),
        (["--input_image_or_video_path", "bad.mp4"], "bad.mp4: "),
        (["--num_input_frames", 17], "has 12 frames, num_conditional_frames=17 needs .*--num_input_frames"),
        (
            ["--input_image_or_video_path", "ok.png", "--num_input_frames", 9],
            "is an image: num_conditional_frames must",
        ),
        (["--num_input_frames", 9], "9 given frames leave nothing of 5"),
        (["--num_input_frames", 2], r"T = 2 frames: expected 1 \+ 4 k, such as 1 or 5"),
        (["--num_video_frames", 10], "9 or 13"),
        (["--height", 50], "must be a multiple of 16; nearest: 48 x 64"),
        (["--cp_size", 2], r"--cp_size 2 with 1 process\(es\): the rest would be tensor parallel"),
        (["--num_gpus", 2], r"1 process\(es\) run; start them with"),
        (["--tokenizer_dir", "nowhere"], "no video tokenizer at checkpoints/nowhere: --tokenizer_dir names a folder"),
        (["--diffusion_transformer_dir", "x"], "--dit_path and --diffusion_transformer_dir both say which network"),
        (["--resolution", "480"], "--resolution is for Cosmos-Predict2, and .* predict1 network: use --height and"),
        (["--model_size", "14B"], "--model_size is for Cosmos-Predict2, and .* predict1 network: use --dit_path"),
        (["--batch_input_path", "none.jsonl"], "no batch file none.jsonl: expected an object per line"),
        (["--video_save_name", "a.gif"], None),
    ],
)
def test_bad_options_say_what_to_do(video_run: RunFolder, clip: Path, options: list[Any], message: str | None) -> None:
    Path("bad.png").write_text("no image")
    Path("bad.mp4").write_text("no video")
    Image.new("RGB", (64, 48)).save("ok.png")
    given = ["--dit_path", video_run.root, "--input_image_or_video_path", clip, "--prompt", "x", *QUICK, *options]
    if message is None:  # a name, whatever dots it has
        run("video2world", *given)
        assert Path("outputs/a.gif.mp4").is_file()
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("video2world", *given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "visual_input": "c.png"}\n\n{"prompt": "b"\n', 'line 3: no valid JSON: .*\n  {"prompt": "b"'),
        ('{"prompt": "a", "visual_input": "c.png"}\n["b"]\n', "line 2: item 1 is no object"),
        ('\n{"prompt": "a", "visual": "c.png"}', "line 2: unknown key 'visual'; did you mean visual_input"),
        ('{"prompt": "a"}', "line 1: item 0: input_path is None"),
        ('{"visual_input": "c.png"}', "line 1: item 0: prompt is None, expected str"),
        ("\n\n", "line 1: no items"),
        ('{"prompt": "a", "visual_input": "c.png"}', "no input at c.png"),
    ],
)
def test_malformed_lines(video_run: RunFolder, text: str, message: str) -> None:
    Path("b.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        run("video2world", "--dit_path", video_run.root, "--batch_input_path", "b.jsonl", *QUICK)


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        (["--num_input_frames", 9], "use --num_conditional_frames"),
        (["--height", 48], "use --size"),
        (["--video_save_name", "a"], "use --save_path"),
        (["--batch_input_path", "b.jsonl"], "use --batch_input_json"),
        (["--sampler", "RES"], "leave it out"),
        (["--offload_tokenizer"], "use --offload"),
    ],
)
def test_flags_of_predict1_on_a_predict2_network(tmp_path: Path, clip: Path, flag: list[Any], advice: str) -> None:
    file = write_run(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=rf"{flag[0]} is for Cosmos-Predict1, and .*pt is a predict2 network: {advice}"
    ):
        run("video2world", "--dit_path", file, "--input_path", clip, *QUICK, *flag)


def test_checkpoints_that_are_not_there(text_run: RunFolder) -> None:
    with pytest.raises(FileNotFoundError) as error:
        run("text2world", "--diffusion_transformer_dir", "mine_post-trained", "--prompt", "x", *QUICK)
    text = str(error.value)
    assert text.startswith(
        "no checkpoint at checkpoints/mine_post-trained/model.pt: download it (scripts/download_diff"
    )
    assert "cp RUN/checkpoints/iter_000001000_ema_model.pt checkpoints/mine_post-trained/model.pt" in text
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at checkpoints/Cosmos-Predict1-7B-Video2World/model.pt"
    ):
        run("video2world", "--num_input_frames", 9, "--input_path", write_clip(Path("c.mp4")), *QUICK)
    copied(text_run.exports(2)["reg"], Path("checkpoints/mine_post-trained"), None)
    with pytest.raises(
        ValueError, match=r"a network of \d+ channels .* is no published size, .*: --config RUN/config.yaml"
    ):
        run("text2world", "--diffusion_transformer_dir", "mine_post-trained", "--prompt", "x", *QUICK)
    with pytest.raises(ConfigError, match="--prompt is empty"):
        run("text2world", "--dit_path", text_run.root, "--prompt", "", *QUICK)
    with pytest.raises(ConfigError, match=r"takes no given frames .* use text2world.py"):
        run("video2world", "--dit_path", text_run.root, "--input_path", "c.mp4", *QUICK)


@pytest.mark.parametrize("flags", [["--nemo_checkpoint", "nemo"], ["--dit_path", "nemo/weights"], ["--model", "nemo"]])
def test_distributed_checkpoints_are_imported_first(flags: list[str]) -> None:
    write_torch_dist(Path("nemo/weights"), nemo_state(network_state("text2world"), stacked=True))
    with pytest.raises(
        ConfigError, match=r"is a distributed checkpoint of NeMo: .*\n  python scripts/import_nemo_check"
    ):
        run("text2world", *flags, "--prompt", "x", *QUICK)


def test_the_published_tokenizer_lies_beside_the_model(text_run: RunFolder) -> None:
    """Its folder in --checkpoint_dir is taken where the checkpoint names none; here it is empty, which is said."""
    net = load_world_model(text_run.root).model.net
    Path("root/mine").mkdir(parents=True)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    save_file(weights, "root/mine/model.safetensors", {METADATA_KEY: config_to_json(net.config)})
    given = ["--dit_path", "root/mine/model.safetensors", "--prompt", "x", *QUICK]
    with pytest.raises(
        ConfigError, match="no weights of the video tokenizer 'cosmos_cv8x8x8' at .*--tokenizer_path FILE"
    ):
        run("text2world", *given)
    Path("root/Cosmos-Tokenize1-CV8x8x8-720p").mkdir()
    with pytest.raises((ValueError, OSError), match="root/Cosmos-Tokenize1-CV8x8x8-720p"):
        run("text2world", *given)


@pytest.mark.slow
def test_the_program(text_run: RunFolder) -> None:
    root = Path(__file__).parents[2]
    options = ["--dit_path", str(text_run.root), "--prompt", "a block", "--video_save_name", "end", *QUICK]
    command = [sys.executable, str(root / "inference" / "text2world.py")]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert video_reader.probe("outputs/end.mp4").frames == 5 and Path("outputs/end.txt").read_text() == "a block"
    result = subprocess.run([*command, *options, "--distill_steps", "4"], capture_output=True, text=True)
    assert result.returncode == 2 and "error: --distill_steps is for Cosmos-Predict2" in result.stderr
    assert "Traceback" not in result.stderr
