"""Captions of a dataset folder: one prompt for all, a table, and the scripts around them with the offline encoder."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from cosmos_predict.data.captions import caption_all, caption_of, captions_from_csv, encode_texts
from cosmos_predict.data.import_folder import extract_images
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import DataError
from cosmos_predict.io.embeddings import read_embedding
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from tests.data.conftest import counting_frames


@dataclass
class Ended:
    returncode: object
    stdout: str
    stderr: str


def run(command: str, *flags: str) -> Ended:
    """Run a script's command in this process, as far as its exit."""
    main = importlib.import_module(f"cosmos_predict.cli.{command.removesuffix('.py')}").main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(flags))
    return Ended(ended.value.code, out.getvalue(), err.getvalue())


def make_files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_one_prompt_for_all_keeps_other_captions(tmp_path: Path) -> None:
    make_files(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4", ".hidden.mp4", "notes.md")
    (tmp_path / "metas").mkdir()
    (tmp_path / "metas" / "b.txt").write_text("its own caption")
    (tmp_path / "metas" / "c.txt").write_text(" \n")
    script = "get_t5_embeddings_from_cosmos_nemo_assets.py"
    done = run(script, "--dataset_path", str(tmp_path), "--text_encoder", "tiny")
    assert done.returncode == 0, done.stderr
    captions = {path.stem: path.read_text().strip() for path in (tmp_path / "metas").iterdir()}
    assert captions == {
        "a": "A video of sks teal robot.",
        "b": "its own caption",
        "c": "A video of sks teal robot.",
    }
    assert "2 written, 1 kept" in done.stdout and "3 written, 0 skipped" in done.stdout
    assert read_embedding(tmp_path / "t5_xxl" / "b.pickle").shape == (len("its own caption") + 1, 1024)
    again = run(script, "--dataset_path", str(tmp_path), "--text_encoder", "tiny", "--prompt", "Another prompt.")
    assert "0 written, 3 kept" in again.stdout and "0 written, 3 skipped" in again.stdout

    images = run(script, "--dataset_path", str(tmp_path), "--is_image")
    assert images.returncode == 2 and "without --is_image, videos/ is read" in images.stderr
    make_files(tmp_path / "images", "d.JPG")
    assert caption_all(tmp_path, "An image.", images=True) == (1, 0)


def test_bad_prompts_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        caption_all(tmp_path, " ")
    with pytest.raises(DataError, match="no such folder; with --is_image, images/ is read"):
        caption_all(tmp_path, "x")
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match="no video in it"):
        caption_all(tmp_path, "x")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        caption_of(tmp_path / "no.txt")


def test_captions_from_a_table(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    rows = [
        "file,prompt",
        "videos/a.mp4,pick up the cup, then pour",
        'b.mp4,"say ""hello"", wave\nand stop"',
        'c.mp4, "put it down, here"',
        "",
        "d.mp4,",
        "a.mp4,another prompt",
    ]
    table.write_text("\n".join(rows), encoding="utf-8-sig")
    written, kept, failed = captions_from_csv(tmp_path, table, "Robot: ")
    assert (written, kept) == (3, 0)
    captions = {path.stem: path.read_text() for path in (tmp_path / "metas").iterdir()}
    assert captions == {
        "a": "Robot: pick up the cup, then pour\n",
        "b": 'Robot: say "hello", wave\nand stop\n',
        "c": "Robot: put it down, here\n",
    }
    reasons = [failed[path] for path in sorted(failed)]
    assert len(reasons) == 2 and "a second, different prompt" in reasons[0] and "no prompt in" in reasons[1]
    assert captions_from_csv(tmp_path, table, "Robot: ")[:2] == (0, 3)


def test_a_changed_caption_gets_a_new_embedding(tmp_path: Path) -> None:
    script, table = "get_t5_embeddings_from_groot_dataset.py", tmp_path / "metadata.csv"
    table.write_text("file,prompt\na.mp4,lift\nb.mp4,push\n")
    flags = ("--dataset_path", str(tmp_path), "--text_encoder", "tiny")
    assert run(script, *flags).returncode == 0
    assert (tmp_path / "metas" / "a.txt").read_text() == "The robot arm is performing a task. lift\n"
    table.write_text("file,prompt\na.mp4,lift it up\nb.mp4,push\n,x\n")
    again = run(script, *flags)
    assert again.returncode == 1 and "no file name" in again.stderr  # the bad line; the others are made
    assert "1 written, 1 skipped" in again.stdout
    length = len("The robot arm is performing a task. lift it up") + 1
    assert read_embedding(tmp_path / "t5_xxl" / "a.pickle").shape == (length, 1024)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    done = run("get_t5_embeddings_from_groot_dataset.py", "--dataset_path", str(tmp_path))
    assert done.returncode == 2 and "metadata.csv: no such file; expected a table" in done.stderr
    table = tmp_path / "x.csv"
    table.write_text("file,prompt\n")
    with pytest.raises(DataError, match="no line below the header"):
        captions_from_csv(tmp_path, table)
    table.write_text("file,prompt\na.mp4;lift\n")
    with pytest.raises(DataError, match="no caption in it; expected a header and lines file,prompt .*no prompt in"):
        captions_from_csv(tmp_path, table)
    table.write_bytes(b"file,prompt\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="not a CSV table in UTF-8"):
        captions_from_csv(tmp_path, table)


def test_images_from_videos(tmp_path: Path, clip: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    (source / "videos").mkdir(parents=True)
    (source / "videos" / "a.mp4").write_bytes(clip.read_bytes())
    (source / "videos" / "broken.mp4").write_bytes(b"no video")
    script = ("extract_images_from_videos.py", "--input_dataset_dir", str(source), "--output_dataset_dir", str(output))
    done = run(*script, "--stride", "15")
    assert done.returncode == 1 and "broken.mp4" in done.stderr and "3 images written" in done.stdout
    pictures = sorted((output / "images").iterdir())
    assert [path.name for path in pictures] == [f"a_{k:08d}.jpg" for k in range(3)]
    means = [sum(Image.open(path).convert("L").resize((1, 1)).tobytes()) for path in pictures]
    assert means == pytest.approx([10, 70, 130], abs=3)  # frames 0, 15, 30
    pictures[1].unlink()
    report = extract_images(source, output, 15)
    assert (report.written, report.kept) == (1, 2)
    write_video(source / "videos" / "a.mov", counting_frames(2), fps=10)
    assert any("would overwrite" in reason for reason in extract_images(source, output, 15).failed.values())
    missing = run(
        "extract_images_from_videos.py", "--input_dataset_dir", "/nowhere", "--output_dataset_dir", str(output)
    )
    assert missing.returncode == 2 and "/nowhere/videos: no such folder" in missing.stderr
    with pytest.raises(DataError, match="stride=0"):
        extract_images(source, output, 0)


def test_an_embedding_that_does_not_fit_float16_is_named() -> None:
    class Loud(TinyTextEncoder):
        def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
            embeddings, mask = super().encode(prompts, max_length)
            loud = torch.tensor([prompt == "a loud dog" for prompt in prompts])
            return embeddings * torch.where(loud, 1e9, 1.0)[:, None, None], mask

    assert set(encode_texts(Loud(), {"a": "a dog", "b": "a cat"})) == {"a", "b"}
    with pytest.raises(
        DataError, match=r"caption of 'b' \('a loud dog'\) does not fit float16; encode in float32 or bfl"
    ):
        encode_texts(Loud(), {"a": "a dog", "b": "a loud dog"})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_captions_by_column_name(tmp_path: Path, suffix: str) -> None:
    """As HD-VILA has them, with other columns around; a clip's number stays in its name."""
    table = tmp_path / f"hdvila{suffix}"
    if suffix == ".csv":
        table.write_text('url,clip_id,caption,span_start\nu,v.0.mp4,"a cat, asleep",1\nu,v.1,a dog,2\nu,v.2.mp4,,3\n')
    else:
        rows = [{"clip_id": "v.0.mp4", "caption": "a cat, asleep"}, {"clip_id": "v.1", "caption": "a dog", "url": "u"}]
        table.write_text("\n".join(json.dumps(row) for row in [*rows, {"clip_id": "v.2.mp4"}]) + "\n\n")
    flags = ("--dataset_path", str(tmp_path), "--meta_csv", str(table), "--text_encoder", "tiny")
    done = run("get_t5_embeddings.py", *flags)
    assert done.returncode == 1 and f"line {4 if suffix == '.csv' else 3}: no prompt" in done.stderr
    captions = {path.name: path.read_text() for path in (tmp_path / "metas").iterdir()}
    assert captions == {"v.0.txt": "a cat, asleep\n", "v.1.txt": "a dog\n"}
    assert read_embedding(tmp_path / "t5_xxl" / "v.1.pickle").shape == (len("a dog") + 1, 1024)
    table.write_text("[1]\n")
    assert run("get_t5_embeddings.py", *flags).returncode == 2
