"""What a sidecar holds the hashes of, adapters inside the file of a checkpoint, values that no option takes, --compile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosmos_predict.checkpoint.convert import Conversion, convert
from cosmos_predict.checkpoint.lora_forms import CONFIG_FILE, network_adapter, write_adapter
from cosmos_predict.checkpoint.lora_runs import file_hash
from cosmos_predict.cli.generate import use_sidecar
from cosmos_predict.cli.generation import PROMPT, build_parser
from cosmos_predict.data import video_reader
from cosmos_predict.errors import CheckpointError, ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.networks.lora import inject_lora
from cosmos_predict.pipelines.load import content_hash, load_world_model
from tests.cli.generating import run
from tests.pipelines.small import write_clip, write_run

QUICK = ["--num_steps", "1", "--device", "cpu", "--guidance", "1"]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("video") / "run")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "moving.mp4")


def write_lora(run_file: Path, folder: Path, shift: float, made_for: str | None = None) -> Path:
    """Write adapters whose effect `shift` scales, of alpha 4 and rank 4."""
    net = load_world_model(run_file).model.net
    inject_lora(net, rank=4)
    for name, value in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(value, shift)
    write_adapter(network_adapter(net, made_for=made_for), folder)
    return folder


# ---- sidecars --------------------------------------------------------------------------------------------------------


def test_a_sidecar_notes_every_file_and_refuses_changed_ones(run_file: Path, clip: Path, tmp_path: Path) -> None:
    adapters = [write_lora(run_file, tmp_path / name, 0.05) for name in ("first", "second")]
    prompts = {"prompt": tmp_path / "prompt.npy", "negative_prompt": tmp_path / "negative.safetensors"}
    for path in prompts.values():
        write_embedding(path, np.ones((3, 1024), np.float32))
    given = ["--dit_path", run_file, "--input_path", clip, "--lora_path", *adapters, "--config"]
    given += [run_file.parents[2] / "config.yaml", *QUICK, "--save_path", tmp_path / "a.mp4"]
    given += [option for name, path in prompts.items() for option in (f"--{name}", path)]
    run("video2world", *given)
    sidecar = json.loads((tmp_path / "a.json").read_text())
    expected = {name: file_hash(path) for name, path in {**prompts, "dit_path": run_file, "input_path": clip}.items()}
    assert expected.items() <= sidecar["hashes"].items()
    assert sidecar["hashes"]["lora_path"] == [content_hash(path) for path in adapters]
    assert set(sidecar["hashes"]) == {*expected, "lora_path", "config"}
    assert (sidecar["arguments"]["text_encoder"], sidecar["arguments"]["tokenizer_path"]) == ("tiny", "dct")
    again = ["video2world", "--from_sidecar", tmp_path / "a.json", "--save_path", tmp_path / "b.mp4"]
    run(*again)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    write_embedding(prompts["negative_prompt"], np.zeros((3, 1024), np.float32))
    with pytest.raises(
        DataError, match=r"negative.safetensors was sha256:\w+ and is sha256:\w+ now; .*--negative_prompt"
    ):
        run(*again)
    run(*again, "--negative_prompt", "other words")
    write_embedding(prompts["negative_prompt"], np.ones((3, 1024), np.float32))
    config = json.loads((adapters[1] / CONFIG_FILE).read_text())
    (adapters[1] / CONFIG_FILE).write_text(json.dumps({**config, "lora_alpha": 1}))
    with pytest.raises(DataError, match=r"second was sha256:\w+ and is sha256:\w+ now; .*--lora_path"):
        run(*again)
    run(*again, "--lora_path", adapters[0])


def test_hashes_of_folders_and_of_what_lies_beside_a_file(tmp_path: Path) -> None:
    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / name).write_text(name)
    alone, folder = content_hash(tmp_path / "encoder.jit"), content_hash(tmp_path)
    assert alone == file_hash(tmp_path / "encoder.jit") and folder.startswith("sha256:")
    (tmp_path / "README.md").write_text("of no matter")
    assert content_hash(tmp_path) == folder
    (tmp_path / "mean_std.pt").write_text("statistics")
    assert content_hash(tmp_path / "encoder.jit") != alone and content_hash(tmp_path) != folder
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert content_hash(tmp_path / "copy") == content_hash(tmp_path)


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_published_flags_of_adapters_inside_a_file(run_file: Path, clip: Path, tmp_path: Path) -> None:
    adapters, config = write_lora(run_file, tmp_path / "lora", 0.05), run_file.parents[2] / "config.yaml"
    convert(run_file, tmp_path / "inside.pt", Conversion(lora=[adapters], lora_form="infile"))
    given = ["--dit_path", tmp_path / "inside.pt", "--config", config, "--input_path", clip, *QUICK]
    published = ["--use_lora", "--lora_target_modules", "q_proj,k_proj", "--init_lora_weights", "--lora_rank", 4]
    clips = {}
    for name, options in {
        "plain": given,
        "published": [*given, *published, "--lora_alpha", 4],
        "strong": [*given, *published, "--lora_alpha", 40],
        "beside": ["--dit_path", run_file, "--input_path", clip, *QUICK, "--lora_path", adapters, "--lora_alpha", 4],
    }.items():
        run("video2world", *options, "--save_path", tmp_path / f"{name}.mp4")
        clips[name] = (tmp_path / f"{name}.mp4").read_bytes()
    assert clips["plain"] == clips["published"] == clips["beside"] != clips["strong"]
    run("video2world", "--from_sidecar", tmp_path / "strong.json", "--save_path", tmp_path / "again.mp4")
    other = build_parser("video2world")
    use_sidecar(other, other.parse_args(["--from_sidecar", str(tmp_path / "strong.json"), "--dit_path", "other"]))
    assert (other.get_default("tokenizer_path"), other.get_default("lora_alpha")) == ("", 40)  # the other one's own
    assert (tmp_path / "again.mp4").read_bytes() == clips["strong"]
    base = ["--dit_path", run_file, "--input_path", clip, *QUICK]
    for options, message in (
        ([*given, "--lora_rank", 16], r"--lora_rank 16: the adapters of .*inside.pt have \[4\]"),
        (
            [*base, "--use_lora"],
            r"iter_000000001.pt holds no LoRA adapters: give adapters as --lora_path, or leave out",
        ),
        (
            [*base, "--lora_path", adapters, "--lora_alpha", 8],
            r"--lora_alpha 8: .* says 4 of its adapters; leave it out",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            run("video2world", *options)


def test_adapters_of_another_task_are_refused(run_file: Path, clip: Path, tmp_path: Path) -> None:
    given = ["video2world", "--dit_path", run_file, "--input_path", clip, "--save_path", tmp_path / "a.mp4", *QUICK]
    run(*given, "--lora_path", write_lora(run_file, tmp_path / "fits", 0.05, "predict2 video2world"))
    image = write_lora(run_file, tmp_path / "image", 0.05, "predict2 text2image")
    what = (
        r"image: adapters of a predict2 text2image network, and .*iter_000000001.pt is a predict2 video2world network"
    )
    with pytest.raises(CheckpointError, match=what):
        run(*given, "--lora_path", image)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--seed", "-1", "-1 is not a whole number from 0 to 4294967295"),
        ("--seed", "4294967296", "4294967296 is not a whole number from 0 to 4294967295"),
        ("--fps", "-3", "-3 is not above 0"),
        ("--fps", "0", "0 is not above 0"),
        ("--fps", "inf", "inf is not a finite number"),
        ("--guidance", "nan", "nan is not a finite number"),
        ("--guidance", "much", "invalid finite value: 'much'"),
        ("--num_steps", "0", "0 is not a whole number of at least 1"),
    ],
)
def test_numbers_out_of_range(flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build_parser("video2world").parse_args([flag, value])
    assert stop.value.code == 2 and f"error: argument {flag}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], r"--device gpu: expected cpu, cuda, or cuda:N"),
        (["--device", "cuda:99"], r"--device cuda:99: torch finds \d+ GPU\(s\) with a driver here; --device cpu"),
        (["--seed", 2**32 - 1, "--num_chunks", 2], r"seed 4294967295 .* of 2 chunks"),
    ],
)
def test_devices_and_seeds(run_file: Path, clip: Path, tmp_path: Path, options: list[Any], message: str) -> None:
    given = ["--dit_path", run_file, "--input_path", clip, "--save_path", tmp_path / "a.mp4", *QUICK]
    with pytest.raises(ConfigError, match=message):
        run("video2world", *given, *options)


def test_what_a_clip_is_made_from_is_never_replaced(run_file: Path, clip: Path, tmp_path: Path) -> None:
    own = shutil.copy(clip, tmp_path / "own.mp4")
    (tmp_path / "linked.mp4").symlink_to(own)
    items = [
        {"input_video": str(given), "prompt": "a hand", "output_video": str(tmp_path / f"{name}.mp4")}
        for name, given in (("a", clip), ("b", tmp_path / "none.mp4"))
    ]
    (tmp_path / "a.json").write_text(json.dumps(items[:1]))  # the settings of a.mp4 would lie there
    (tmp_path / "items.json").write_text(json.dumps([{**items[0], "output_video": f"{tmp_path}/c.mp4"}, items[1]]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options, message in (
        (["--input_path", own, "--save_path", own], r"own\.mp4 would replace .*own\.mp4, --input_path: give another"),
        (["--input_path", own, "--save_path", tmp_path / "linked.mp4"], r"linked\.mp4 would replace .*own\.mp4"),
        (["--batch_input_json", tmp_path / "a.json"], r"a\.json: item 0: .*a\.mp4 would replace .*a\.json"),
        (["--batch_input_json", tmp_path / "items.json"], r"items\.json: item 1: no input at .*none\.mp4"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            run("video2world", "--dit_path", run_file, "--input_path", clip, *QUICK, *options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_prompt_of_our_own_where_the_published_commands_have_one() -> None:
    prompts = {name: build_parser(name).parse_args([]).prompt for name in ("text2image", "text2world", "video2world")}
    assert prompts == {"text2image": PROMPT, "text2world": PROMPT, "video2world": ""}


@pytest.mark.slow
def test_compiled_blocks_make_the_same_clip(run_file: Path, clip: Path, tmp_path: Path) -> None:
    given = ["--dit_path", run_file, "--input_path", clip, *QUICK]
    for name, options in (("plain", []), ("compiled", ["--compile"])):
        run("video2world", *given, *options, "--save_path", tmp_path / f"{name}.mp4")
    a, b = (video_reader.read_frames(tmp_path / f"{name}.mp4", range(9)).astype(int) for name in ("plain", "compiled"))
    assert np.abs(a - b).mean() < 0.5  # sums in another order
