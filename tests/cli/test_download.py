"""The download commands as a user runs them, against a small hub on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_predict.cli.download import build_parser, read_table, repositories
from tests.io.hub_server import Hub

REPOSITORY = Path(__file__).parents[2]
MODEL = bytes(range(256)) * 100_000
V2W = "nvidia/Cosmos-Predict2-2B-Video2World"
ARGUMENTS = ["download_checkpoints.py", "--model_types", "video2world", "--model_sizes", "2B"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    names = [f"model-{resolution}p-{fps}fps.pt" for resolution in (480, 720) for fps in (10, 16)]
    hub.files = {
        V2W: {**dict.fromkeys(names, MODEL), "tokenizer/tokenizer.pth": b"wan" * 100, "README.md": b"x"},
        "google-t5/t5-11b": {"config.json": b"{}", "pytorch_model.bin": b"t5" * 100, "tf_model.h5": b"tf"},
    }
    with hub.serve():
        yield hub


def start(hub: Hub, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, f"scripts/{arguments[0]}", *arguments[1:], "--checkpoint_dir", str(folder)]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_none"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(hub: Hub, folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(hub, folder, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_dryrun_then_download_then_check(hub: Hub, tmp_path: Path) -> None:
    status, out, err = run(hub, tmp_path, *ARGUMENTS, "--dryrun")
    assert status == 0, err
    assert "model-720p-16fps.pt  0.026 GB" in out and "4 files, 0.0 GB" in out and not tree(tmp_path)
    status, out, err = run(hub, tmp_path, *ARGUMENTS)
    assert status == 0 and out.count("downloaded and checked") == 4, err
    assert tree(tmp_path) == [
        "google-t5/t5-11b/config.json",
        "google-t5/t5-11b/pytorch_model.bin",
        f"{V2W}/model-720p-16fps.pt",
        f"{V2W}/tokenizer/tokenizer.pth",
    ]
    status, out, err = run(hub, tmp_path, *ARGUMENTS)
    assert status == 0 and out.count("there already, checked") == 4, err


def test_killed_download_is_continued(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 15_000_000
    process = start(hub, tmp_path, *ARGUMENTS)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 1_000_000 for path in tmp_path.rglob("*.incomplete")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.stall_after = None
    hub.requests.clear()
    status, out, err = run(hub, tmp_path, *ARGUMENTS)
    assert status == 0, out + err
    assert (tmp_path / V2W / "model-720p-16fps.pt").read_bytes() == MODEL and not list(tmp_path.rglob("*.incomplete"))
    asked = [asked for path, asked in hub.requests if path == f"/{V2W}/cdn/main/model-720p-16fps.pt"]
    assert len(asked) == 1 and asked[0] is not None and int(asked[0][6:-1]) > 1_000_000


def test_one_refusal_does_not_stop_the_others(hub: Hub, tmp_path: Path) -> None:
    hub.gated[V2W] = 403
    status, _, err = run(hub, tmp_path, *ARGUMENTS)
    assert status == 1 and "Traceback" not in err
    assert (
        f"Accept the licence on the repository's page, {hub.endpoint}/{V2W} , then log in with `hf auth login`" in err
    )
    assert err.count("Accept the licence") == 1  # once for all files of the repository
    assert tree(tmp_path) == ["google-t5/t5-11b/config.json", "google-t5/t5-11b/pytorch_model.bin"]


def test_dryrun_without_access_says_what_is_unknown(hub: Hub, tmp_path: Path) -> None:
    status, out, err = run(hub, tmp_path, "download_diffusion_nemo.py", "--dryrun")
    assert status == 1
    assert "nvidia/Cosmos-1.0-Diffusion-14B-Video2World: nemo/*: not listed, sizes unknown" in out
    assert "pytorch_model.bin" in out and "no such repository, or a private one" in err


def test_nothing_chosen(hub: Hub, tmp_path: Path) -> None:
    status, _, err = run(
        hub, tmp_path, "download_checkpoints.py", "--model_types", "video2world", "--model_sizes", "0.6B"
    )
    assert status == 2
    assert "nothing of this type was published in size 0.6B. Sizes: text2image: 0.6B, 2B, 14B; video2world" in err


def test_a_file_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    """It is named with what there is to choose from, the status is 1, and everything else comes."""
    del hub.files[V2W]["model-720p-16fps.pt"]
    message = (
        f"error: {V2W} has no model-720p-16fps.pt; to choose from: model-480p-10fps.pt, model-480p-16fps.pt, "
        "model-720p-10fps.pt, tokenizer/tokenizer.pth"
    )
    status, out, err = run(hub, tmp_path, *ARGUMENTS, "--dryrun")
    assert status == 1 and message in err.splitlines() and f"{V2W}: model-720p-16fps.pt: not there" in out
    assert "3 files" in out and not tree(tmp_path)
    status, out, err = run(hub, tmp_path, *ARGUMENTS, "--natten", "--resolution", "480", "720")
    assert status == 1 and "Traceback" not in err and message in err
    assert f"{V2W} has no model-720p-16fps-natten.pt; to choose from: " in err and err.count("error:") == 2
    assert [path for path in tree(tmp_path) if V2W in path] == [
        f"{V2W}/model-480p-16fps.pt",
        f"{V2W}/tokenizer/tokenizer.pth",
    ]
    del hub.files[V2W]["tokenizer/tokenizer.pth"]  # a pattern with wildcards asks for what there is
    status, _, err = run(hub, tmp_path, *ARGUMENTS, "--resolution", "480")
    assert status == 0, err


def test_a_rate_that_was_not_published(hub: Hub, tmp_path: Path) -> None:
    asked = len(hub.requests)
    for rates in (["4"], ["4", "16"]):
        status, _, err = run(hub, tmp_path, *ARGUMENTS, "--fps", *rates)
        assert status == 2 and len(hub.requests) == asked
        assert "--fps 4 is not for --model_types video2world: it was published with 10 and 16; other types come" in err
    files = chosen("download_checkpoints.py", "--model_types", "sample_action_conditioned", "--fps", "4")
    assert files["checkpoints/nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"] == ["*"]


def chosen(prog: str, *arguments: str) -> dict[str, list[str]]:
    parsed = build_parser(prog).parse_args([*arguments])
    return {f"{item['folder']}": item["files"] for item in repositories(parsed)}


def test_defaults_are_the_published_ones() -> None:
    predict2 = chosen("download_checkpoints.py")
    assert len(predict2) == 9 and predict2[f"checkpoints/{V2W}"] == ["model-720p-16fps.pt", "tokenizer/*"]
    assert list(chosen("download_diffusion_checkpoints.py", "--model_sizes", "7B")) == [
        f"checkpoints/{name}"
        for name in (
            "Cosmos-Predict1-7B-Text2World",
            "Cosmos-Predict1-7B-Video2World",
            "Cosmos-Predict1-7B-WorldInterpolator",
            "Cosmos-Tokenize1-CV8x8x8-720p",
            "google-t5/t5-11b",
        )
    ]
    assert list(chosen("download_diffusion_nemo.py", "--extras"))[-1] == "checkpoints/nvidia/Cosmos-1.0-Guardrail"


def test_choices() -> None:
    files = chosen(
        "download_checkpoints.py", *ARGUMENTS[1:], "--fps", "10", "16", "--resolution", "480", "720", "--natten"
    )
    assert files[f"checkpoints/{V2W}"] == [
        "model-480p-10fps.pt",
        "model-720p-10fps.pt",
        "model-480p-16fps.pt",
        "model-720p-16fps.pt",
        "tokenizer/*",
        "model-720p-10fps-natten.pt",
        "model-720p-16fps-natten.pt",
    ]
    dreams = chosen("download_checkpoints.py", "--model_types", "sample_gr00t_dreams_gr1", "--model_sizes", "2B")
    assert "checkpoints/nvidia/Cosmos-Predict2-14B-Sample-GR00T-Dreams-GR1" in dreams
    encoder = chosen("download_checkpoints.py", "--model_types", "cosmos_reason1")  # Predict2.5's, in place of T5
    assert set(encoder) == {"checkpoints/nvidia/Cosmos-Reason1.1-7B"}
    assert "checkpoints/google-t5/t5-11b" in chosen(
        "download_checkpoints.py", "--model_types", "cosmos_reason1", "multiview"
    )
    multiview = chosen("download_diffusion_checkpoints.py", "--model_types", "SingleToMultiView-Sample-AV")
    assert "checkpoints/Cosmos-Predict1-7B-Video2World-Sample-AV-Single2MultiView" in multiview


def test_pins_are_commits() -> None:
    for entry in (entry for table in read_table().values() for entry in table):
        pins = entry.get("revisions")
        if isinstance(pins, dict):
            assert set(pins) <= set(entry["sizes"])
        for pin in pins.values() if isinstance(pins, dict) else [pins] if pins else []:
            assert len(pin) == 40 and int(pin, 16)


def test_models_of_curation(hub: Hub, tmp_path: Path) -> None:
    assert set(chosen("download_curate_models.py", "--models", "transnetv2,cosmos_reason1")) == {
        "checkpoints/transnetv2",
        "checkpoints/nvidia/Cosmos-Reason1-7B",
    }
    assert len(chosen("download_curate_models.py", "--models", "aesthetic")) == 2
    hub.files["Sn4kehead/TransNetV2"] = {"transnetv2-pytorch-weights.pth": MODEL, "README.md": b"x"}
    for flags, found in ((["--dryrun"], []), ([], ["transnetv2/transnetv2-pytorch-weights.pth"])):
        status, out, err = run(hub, tmp_path, "download_curate_models.py", "--models", "transnetv2", *flags)
        assert status == 0 and "transnetv2-pytorch-weights.pth  0.026 GB" in out, err
        assert tree(tmp_path) == found
    status, _, err = run(hub, tmp_path, "download_curate_models.py", "--models", "transnetv2,clip")
    assert status == 2 and "'transnetv2,clip'; expected some of transnetv2,aesthetic,cosmos_reason1" in err
    status, _, err = run(hub, tmp_path, "download_curate_models.py")
    assert status == 2 and "--models" in err
