"""`scripts/get_t5_embeddings.py`, run as users run it, with the offline encoder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.cli.get_t5_embeddings import build_parser, main
from cosmos_predict.io.embeddings import read_embedding, write_embedding
from cosmos_predict.text_encoders.tiny import TinyTextEncoder

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "get_t5_embeddings.py"


def command(dataset: Path, *flags: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--dataset_path", str(dataset), "--text_encoder", "tiny", *flags]


def run(dataset: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(dataset, *flags), capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def make_dataset(folder: Path, captions: dict[str, str]) -> Path:
    (folder / "metas").mkdir(parents=True)
    for name, caption in captions.items():
        (folder / "metas" / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def expected(caption: str, max_length: int = 512) -> np.ndarray:
    embeddings, mask = TinyTextEncoder().encode([caption], max_length)
    return embeddings[0][mask[0]].half().numpy()


def test_writes_skips_and_makes_damaged_files_again(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"a": " a red car \n", "b": "a blue car, 川", "b.2": "a red car"})
    done = run(dataset, "--batch_size", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{dataset / 't5_xxl'}: 3 written, 0 skipped (already there), 0 failed"]
    assert sorted(os.listdir(dataset / "t5_xxl")) == ["a.pickle", "b.2.pickle", "b.pickle"]
    for name, caption in [("a", "a red car"), ("b", "a blue car, 川"), ("b.2", "a red car")]:
        embedding = read_embedding(dataset / "t5_xxl" / f"{name}.pickle")
        assert embedding.dtype == np.float16 and embedding.shape == (len(caption.encode()) + 1, 1024)
        np.testing.assert_allclose(embedding, expected(caption), rtol=0, atol=4e-3)

    damaged = dataset / "t5_xxl" / "a.pickle"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:700])
    kept = (dataset / "t5_xxl" / "b.pickle").stat().st_mtime_ns
    again = run(dataset)
    assert again.returncode == 0 and "1 written, 2 skipped" in again.stdout
    assert "a.pickle is made again, it cannot be read" in again.stderr
    assert damaged.read_bytes() == whole
    assert (dataset / "t5_xxl" / "b.pickle").stat().st_mtime_ns == kept

    everything = run(dataset, "--overwrite", "--max_length", "4")
    assert everything.returncode == 0 and "3 written, 0 skipped" in everything.stdout
    assert "3 captions fill all 4 tokens" in everything.stdout
    np.testing.assert_allclose(read_embedding(damaged), expected("a red car", 4), rtol=0, atol=4e-3)


def test_bad_captions_are_named_and_the_others_kept(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"good": "a dog", "empty": " \n", "._good": "not a caption"})
    (dataset / "metas" / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (dataset / "t5_xxl" / "stuck.pickle").mkdir(parents=True)
    (dataset / "metas" / "stuck.txt").write_text("a cat")
    done = run(dataset, "--format", "pickle")
    assert done.returncode == 1
    assert f"failed: {dataset / 'metas' / 'empty.txt'}: the caption is empty" in done.stderr
    assert f"failed: {dataset / 'metas' / 'bytes.txt'}: cannot be read as UTF-8 text" in done.stderr
    assert f"failed: {dataset / 'metas' / 'stuck.txt'}: cannot write" in done.stderr
    assert done.stdout.endswith(": 1 written, 0 skipped (already there), 3 failed\n")
    assert (dataset / "t5_xxl" / "good.pickle").is_file()
    assert "Traceback" not in done.stderr


def test_writes_safetensors(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"a": "a dog"})
    assert run(dataset, "--format", "safetensors").returncode == 0
    np.testing.assert_allclose(
        read_embedding(dataset / "t5_xxl" / "a.safetensors"), expected("a dog"), rtol=0, atol=4e-3
    )


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    captions = {f"{n:03d}": f"{n} " * 120 for n in range(30)}
    dataset = make_dataset(tmp_path, captions)
    outputs = dataset / "t5_xxl"
    process = subprocess.Popen(command(dataset, "--batch_size", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 60
    while not (outputs.is_dir() and len(list(outputs.glob("*.pickle"))) >= 3):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in outputs.glob("*.pickle")}
    assert 3 <= len(before) < len(captions)

    resumed = run(dataset)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{len(captions) - len(before)} written, {len(before)} skipped" in resumed.stdout
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert sorted(path.stem for path in outputs.glob("*.pickle")) == sorted(captions)
    for name in ("000", "015", "029"):
        embedding = read_embedding(outputs / f"{name}.pickle")
        np.testing.assert_allclose(embedding, expected(captions[name].strip()), rtol=0, atol=4e-3)


def test_embeddings_of_two_encoders_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path / "data", {"a": "a dog", "b": "a cat"})

    def call(*flags: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main(["--dataset_path", str(dataset), *flags])
        return ended.value.code, "".join(capsys.readouterr())

    assert call("--text_encoder", "tiny")[0] == 0
    status, printed = call("--text_encoder", "t5")
    assert (
        status == 2
        and "made by the text encoder 'tiny', --text_encoder is 't5'" in printed
        and "--overwrite" in printed
    )
    status, printed = call("--overwrite", "--pretrained_model_name_or_path", "/nowhere/t5")
    assert status == 2 and "no T5 folder /nowhere/t5" in printed
    status, printed = call("--text_encoder", "tiny")
    assert status == 0 and "2 skipped" in printed  # an encoder that cannot be built has removed nothing

    (dataset / "t5_xxl.json").write_text("{}")
    status, printed = call("--text_encoder", "tiny")
    assert status == 2 and "does not name the text encoder" in printed


def test_edited_captions_are_embedded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path / "data", {"a": "a dog", "b": "a cat", "b.2": "a cat"})
    outputs = dataset / "t5_xxl"

    def call(*flags: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main(["--dataset_path", str(dataset), "--text_encoder", "tiny", *flags])
        return ended.value.code, "".join(capsys.readouterr())

    assert "3 written" in call()[1]
    index = json.loads((dataset / "t5_xxl.json").read_text())
    assert index["text_encoder"] == "tiny" and sorted(index["captions"]) == ["a", "b", "b.2"]
    (dataset / "metas" / "b.txt").write_text("a bigger cat\n")
    kept = (outputs / "a.pickle").stat().st_mtime_ns
    status, printed = call("--format", "safetensors")  # the old file must go: which of two forms would be read?
    assert status == 0 and "3 written, 0 skipped" in printed
    assert not (outputs / "b.pickle").exists() and (outputs / "a.pickle").stat().st_mtime_ns == kept
    np.testing.assert_allclose(read_embedding(outputs / "b.safetensors"), expected("a bigger cat"), rtol=0, atol=4e-3)
    assert "0 written, 3 skipped" in call("--format", "safetensors")[1]

    (dataset / "metas" / "b.txt").write_text("\n")
    status, printed = call("--format", "safetensors")
    assert (
        status == 1
        and "b.txt: the caption is empty; write one, or remove the file, its video and t5_xxl/b.*" in printed
    )


def test_embeddings_without_an_index_are_trusted_until_their_caption_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(tmp_path / "data", {"a": "a dog"})

    def call() -> str:
        with pytest.raises(SystemExit):
            main(["--dataset_path", str(dataset), "--text_encoder", "tiny"])
        return capsys.readouterr().out

    write_embedding(dataset / "t5_xxl" / "a.pickle", np.ones((3, 1024), np.float16))
    assert "0 written, 1 skipped" in call()
    assert json.loads((dataset / "t5_xxl.json").read_text())["text_encoder"] == ""  # nobody knows
    (dataset / "metas" / "a.txt").write_text("a bigger dog")
    assert "1 written, 0 skipped" in call()
    assert json.loads((dataset / "t5_xxl.json").read_text())["text_encoder"] == "tiny"


def test_new_embeddings_beside_those_of_an_unknown_encoder_do_not_name_them(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", {"a": "a dog", "b": "a cat"})
    write_embedding(dataset / "t5_xxl" / "a.pickle", np.ones((3, 1024), np.float16))
    done = run(dataset)
    assert done.returncode == 0 and "1 written, 1 skipped" in done.stdout
    assert json.loads((dataset / "t5_xxl.json").read_text())["text_encoder"] == ""
    assert "holds embeddings of an encoder that nobody noted; they are kept, and the new ones are 'tiny'" in done.stderr
    assert "2 written" in run(dataset, "--overwrite").stdout
    assert json.loads((dataset / "t5_xxl.json").read_text())["text_encoder"] == "tiny"


def test_without_network_the_offline_encoder_is_named(
    tmp_path: Path,
) -> None:
    dataset = make_dataset(tmp_path / "data", {"a": "a dog"})
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **nowhere}  # nobody listens there
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dataset_path", str(dataset), "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 1 and "cannot be reached" in done.stderr
    assert "Tests and tiny models need no download: --text_encoder tiny" in done.stderr


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (False, (), "metas is no folder; expected one caption file metas/NAME.txt per video"),
        (True, (), "metas holds no .txt file"),
        (True, ("--batch_size", "0"), "argument --batch_size: 0 is not a whole number of at least 1"),
        (True, ("--format", "npz"), "invalid choice: 'npz'"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, make: bool, flags: tuple[str, ...], message: str) -> None:
    dataset = make_dataset(tmp_path / "data", {}) if make else tmp_path / "data"
    done = run(dataset, *flags)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_help_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "--pretrained_model_name_or_path" in done.stdout and "google-t5/t5-11b" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "cosmos_predict" in imported
    assert not imported & {"torch", "transformers", "numpy", "tqdm", "loguru"}


def test_defaults_are_the_published_ones() -> None:
    args = build_parser().parse_args([])
    assert (str(args.dataset_path), args.max_length) == ("datasets/hdvila", 512)
    assert (args.pretrained_model_name_or_path, args.text_encoder) == ("google-t5/t5-11b", "t5")
    assert (args.format, args.cache_dir) == ("pickle", None)
