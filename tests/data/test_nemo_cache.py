"""Cosmos-1.0's cached latents as a dataset: samples, refusals, damaged files, and the way to our layout and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loguru import logger

from cosmos_predict.data.convert_cache import convert_cache
from cosmos_predict.data.latent_cache import LatentCacheDataset, cache_key, tokenizer_key, write_cache
from cosmos_predict.data.loader import build_dataloader
from cosmos_predict.data.nemo_cache import NemoCacheDataset, read_settings, write_sample, write_settings
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.errors import ConfigError, CosmosPredictError, DataError, UnsafeFileError
from cosmos_predict.models.config import TokenizerConfig
from cosmos_predict.tokenizers.dct import DCTTokenizer

SIZE = (17, [48, 64])
KEYS = {"height": 480, "width": 640, "fps": 29.97, "num_frames": 17, "video_path": "a.mp4"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve samples of 17 frames of 48 x 64, sample I with the value I in latent and text, as other tools write them."""
    for number in range(12):
        latent, text = torch.full((16, 3, 6, 8), float(number)), torch.full((number + 1, 1024), number + 1.0)
        info = {**KEYS, "start_frame": 7 * number}
        write_sample(tmp_path / "cached", str(number), [latent.bfloat16(), latent.bfloat16()], text, info)
    return tmp_path / "cached"


def warnings_of(call: Callable[[], object]) -> str:
    lines = list[str]()
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING", format="{message}")
    try:
        call()
    finally:
        logger.remove(handle)
    return "".join(lines)


def test_a_sample_has_the_keys_and_types_of_the_pixel_dataset(folder: Path) -> None:
    dataset = NemoCacheDataset(folder, *SIZE, shuffle=False)
    assert dataset.names == [str(number) for number in range(12)] and len(dataset) == 12
    sample = dataset[10]
    assert sample["latent"].dtype == torch.bfloat16 and torch.equal(
        sample["latent"].float(), torch.full((16, 3, 6, 8), 10.0)
    )
    text = sample["t5_text_embeddings"]
    assert (
        (text.dtype, text.shape) == (torch.float32, (512, 1024))
        and bool((text[:11] == 11).all())
        and not text[11:].any()
    )
    assert sample["t5_text_mask"].dtype == torch.int64 and int(sample["t5_text_mask"].sum()) == 11
    assert (sample["fps"], sample["num_frames"]) == (29.97, 17)  # not rounded to bfloat16, as the published reader does
    assert sample["image_size"].tolist() == [48, 64, 48, 64] and sample["padding_mask"].shape == (1, 48, 64)
    assert sample["video_name"] == {"latent_path": str(folder / "10.video_latent.pth"), "start_frame_id": "70"}
    assert dataset.latent_shapes == {(17, 48, 64): (16, 3, 6, 8)} and set(dataset.shapes) == {(17, 48, 64)}
    (folder / "10.conditioning_latent.pth").unlink()  # which training has no use for
    assert torch.equal(NemoCacheDataset(folder, *SIZE, shuffle=False)[10]["latent"], sample["latent"])


def test_samples_are_a_function_of_seed_and_number(folder: Path) -> None:
    def starts(seed: int, workers: int = 0, start_sample: int = 0) -> list[str]:
        dataset = NemoCacheDataset(folder, *SIZE, seed=seed)
        batches = build_dataloader(dataset, 2, start_sample=start_sample, num_batches=6, num_workers=workers)
        return [start for batch in batches for start in batch["video_name"]["start_frame_id"]]

    first = starts(3)
    assert sorted(first, key=int) == [str(7 * number) for number in range(12)]  # an epoch reads every sample once
    assert first == starts(3, workers=2) and first != starts(4) and first[4:] == starts(3, start_sample=4)[:8]


def test_the_folder_says_the_size_where_the_experiment_does_not(folder: Path) -> None:
    dataset = NemoCacheDataset(folder)
    assert (dataset.num_frames, list(dataset.video_size)) == SIZE
    with pytest.raises(
        ConfigError, match=r"latents \(16, 3, 6, 8\) are of 17 frames of 48 x 64 .* num_frames=121 and "
    ):
        NemoCacheDataset(folder, 121, [48, 64])
    expected = r"video_size=\[704,1280\]; set .*num_frames=17 and .video_size=\[48,64\], or make .* --num_frames 17 --height 704"
    with pytest.raises(ConfigError, match=expected):
        NemoCacheDataset(folder, 17, [704, 1280])


def test_damaged_samples_are_named_and_replaced(folder: Path) -> None:
    whole = NemoCacheDataset(folder, *SIZE, max_bad_share=0.2)
    (folder / "0.video_latent.pth").write_bytes(b"nothing")
    write_sample(folder, "4", [torch.zeros(16, 3, 6, 4)], torch.ones(2, 1024), KEYS)
    read = list[str]()
    named = warnings_of(lambda: read.extend(whole[number]["video_name"]["start_frame_id"] for number in range(12)))
    assert "0.video_latent.pth: replaced by another clip" in named and "expected a safetensors, torch.save" in named
    assert "(16, 3, 6, 4) of 17 frames, the others are (16, 3, 6, 8) of 17; put samples of another size into" in named
    assert len(read) == 12 and not {"0", "28"} & set(read)
    assert NemoCacheDataset(folder, *SIZE).latent_shape == (16, 3, 6, 8)  # the first file is not needed to tell
    with pytest.raises(DataError, match=r"2 of 12 clips cannot be read, more than max_bad_share=0.1: "):
        dataset = NemoCacheDataset(folder, *SIZE)
        [dataset[number] for number in range(12)]
    with pytest.raises((DataError, CosmosPredictError), match="video_latent.pth"):
        strict = NemoCacheDataset(folder, *SIZE, strict=True)
        [strict[number] for number in range(12)]


def test_incomplete_samples_are_left_out(folder: Path) -> None:
    (folder / "3.info.json").unlink()
    assert "incomplete samples are left out: 3.* (no info.json)" in warnings_of(lambda: NemoCacheDataset(folder, *SIZE))
    assert len(NemoCacheDataset(folder, *SIZE)) == 11
    with pytest.raises(
        DataError, match=r"found 3\.\* \(no info.json\); make them with: python scripts/prepare_dataset.py"
    ):
        NemoCacheDataset(folder, *SIZE, strict=True)
    (folder / "5.t5_text_embeddings.pth").unlink()
    with pytest.raises(DataError, match=r"2 of 12 clips cannot be read, more than max_bad_share=0.1: 3"):
        NemoCacheDataset(folder, *SIZE)


def test_an_unfinished_cache_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(folder, {"text_encoder": "tiny"}, finished=False)
    with pytest.raises(DataError, match="cached: the cache is not finished; run the command that makes it again"):
        NemoCacheDataset(folder, *SIZE)
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="not finished"):  # known by any name of the folder
        NemoCacheDataset(".", *SIZE)
    write_settings(folder, {"text_encoder": "tiny"}, finished=True)
    assert NemoCacheDataset(folder, *SIZE).text_encoders == {"tiny": folder}
    (folder.parent / "cached.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"cached.json: does not say how .* was made .* remove it and make the cache again"
    ):
        NemoCacheDataset(folder, *SIZE)


def test_latents_of_another_tokenizer_are_refused(folder: Path) -> None:
    dct = TokenizerConfig(name="dct", options={"channels": 16, "temporal": 8})
    assert len(NemoCacheDataset(folder, *SIZE, tokenizer=dct)) == 12  # nobody noted how it was made
    write_settings(folder, {**tokenizer_key(dct), "tokenizer_dtype": "bfloat16"}, finished=True)
    assert len(NemoCacheDataset(folder, *SIZE, tokenizer=dct)) == len(NemoCacheDataset(folder, *SIZE)) == 12
    with pytest.raises(ConfigError) as caught:
        NemoCacheDataset(folder, *SIZE, tokenizer=TokenizerConfig("cosmos_cv8x8x8"))
    message = str(caught.value)
    assert (
        f"{folder}: tokenizer is 'dct' in the cache, 'cosmos_cv8x8x8' in the configuration; set model.config."
        in message
    )
    assert "make another cache (python scripts/prepare_dataset.py)" in message and "dtype" not in message


def test_bad_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; make it with: python scripts/prepare_dataset.py"):
        NemoCacheDataset(tmp_path / "nowhere", *SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected samples I.video_latent.pth, .* found none"):
        NemoCacheDataset(tmp_path / "empty", *SIZE)

    def strict(name: str) -> str:
        with pytest.raises(DataError) as caught:
            dataset = NemoCacheDataset(folder, *SIZE, strict=True, shuffle=False)
            dataset[int(name)]
        return str(caught.value)

    (folder / "1.info.json").write_text(json.dumps({"num_frames": 17}))
    assert "1.info.json: expected a JSON object with fps and num_frames (KeyError('fps'))" in strict("1")
    torch.save({"latent": torch.zeros(1)}, folder / "2.video_latent.pth")
    assert "2.video_latent.pth: holds dict, expected a float tensor of 4 axes" in strict("2")
    torch.save(torch.zeros(512, 1024, dtype=torch.int64), folder / "3.t5_text_embeddings.pth")
    assert "3.t5_text_embeddings.pth: holds torch.int64 (512, 1024), expected a float tensor of 2 axes" in strict("3")
    torch.save(os.system, folder / "4.video_latent.pth")
    with pytest.raises(UnsafeFileError, match=r"4.video_latent.pth: refused, its pickle asks for"):
        NemoCacheDataset(folder, *SIZE, shuffle=False)[4]


def test_an_error_leaves_no_file_of_a_sample(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_sample(tmp_path / "cached", "0", [torch.zeros(16, 3, 6, 8)], torch.zeros(513, 1024), KEYS)
    with pytest.raises(TypeError):
        write_sample(tmp_path / "cached", "0", [torch.zeros(16, 3, 6, 8)], torch.zeros(5, 1024), {"start": object()})
    assert not (tmp_path / "cached").exists() or not os.listdir(tmp_path / "cached")


# ---- converters --------------------------------------------------------------------------------------------------------

DCT = TokenizerConfig(name="dct", options={"channels": 16})


def our_cache(folder: Path, cache: Path, dtype: str = "bfloat16", **options: object) -> VideoFolderDataset:
    dataset = VideoFolderDataset(folder, **{"num_frames": 9, "video_size": (48, 64), "fit": "crop", **options})  # type: ignore[arg-type]
    dataset.start_interval = 4
    write_cache(dataset, DCTTokenizer(16).encode, cache_key(dataset, DCT, dtype), cache)
    return dataset


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_our_cache_to_theirs_and_back(make_folder: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    our_cache(make_folder({"a": 20, "b": 33}), tmp_path / "ours", dtype)
    windows = convert_cache(tmp_path / "ours", tmp_path / "theirs")
    before = LatentCacheDataset(tmp_path / "ours", 9, (48, 64), fit="crop", tokenizer=DCT)
    theirs = NemoCacheDataset(tmp_path / "theirs", 9, (48, 64), shuffle=False)
    assert windows == len(theirs) == sum(clip["windows"] for clip in before.clips) == 10
    assert convert_cache(tmp_path / "theirs", tmp_path / "back") == 10
    back = LatentCacheDataset(tmp_path / "back", 9, (48, 64), fit="crop", tokenizer=DCT)
    by_start = {(theirs[n]["fps"], theirs[n]["video_name"]["start_frame_id"], float(theirs[n]["t5_text_embeddings"][0, 0])): n
                for n in range(10)}  # fmt: skip
    assert len(by_start) == 10  # every window of both clips
    for number in range(20):
        one, other = before[number], back[number]
        same = theirs[by_start[one["fps"], one["video_name"]["start_frame_id"], float(one["t5_text_embeddings"][0, 0])]]
        assert one["video_name"]["start_frame_id"] == other["video_name"]["start_frame_id"]
        for name in ("latent", "t5_text_embeddings", "t5_text_mask", "image_size", "padding_mask"):
            assert torch.equal(one[name], other[name]) and torch.equal(one[name], same[name]), name
            assert one[name].dtype == other[name].dtype == same[name].dtype, name
        assert one["latent"].dtype == getattr(torch, dtype) and one["fps"] == other["fps"] == same["fps"]
    with pytest.raises(ConfigError, match=r"tokenizer_options is \{'channels': 16\} in the cache, \{'channels': 8\}"):
        LatentCacheDataset(
            tmp_path / "back", 9, (48, 64), "crop", tokenizer=TokenizerConfig("dct", "", {"channels": 8})
        )


def test_a_published_cache_to_ours(folder: Path, tmp_path: Path) -> None:
    assert read_settings(folder) is None
    write_sample(
        folder, "12", [torch.zeros(16, 3, 6, 8)], torch.full((1, 1024), 1.0), {**KEYS, "start_frame": 0}
    )  # again
    assert convert_cache(folder, tmp_path / "ours") == 12
    weights = tmp_path / "tokenizer"  # nobody says which file or precision the published tool used
    weights.write_bytes(b"weights")
    for dtype in (None, "bfloat16"):
        run = TokenizerConfig("cosmos_cv8x8x8", str(weights), dtype=dtype)
        ours = LatentCacheDataset(tmp_path / "ours", *SIZE, fit="published", shuffle=False, tokenizer=run)
    with pytest.raises(ConfigError, match="tokenizer is 'cosmos_cv8x8x8' in the cache, 'dct' in the configuration"):
        LatentCacheDataset(tmp_path / "ours", *SIZE, fit="published", tokenizer=DCT)
    assert ours.key["tokenizer"] == "cosmos_cv8x8x8" and ours.text_encoders == {"t5": tmp_path / "ours"}
    for number in range(12):  # a text each, so a clip each
        sample = ours[number]
        assert torch.equal(sample["latent"], torch.full((16, 3, 6, 8), float(number)).bfloat16())
        assert sample["video_name"]["start_frame_id"] == str(7 * number) and sample["fps"] == 29.97


def test_what_cannot_be_converted_is_named(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    clips = make_folder({"a": 20, "short": 5})
    our_cache(clips, tmp_path / "sizes", length_buckets=[5])
    with pytest.raises(
        ConfigError, match=r"several sizes \(T, H, W\) \[\(5, 48, 64\), \(9, 48, 64\)\]; Cosmos-1.0's layout"
    ):
        convert_cache(tmp_path / "sizes", tmp_path / "theirs")
    our_cache(clips, tmp_path / "padded", fit="pad", video_size=(64, 64))
    with pytest.raises(ConfigError, match="clip a has padded pixels"):
        convert_cache(tmp_path / "padded", tmp_path / "theirs")
    with pytest.raises(DataError, match="padded: holds files; give a new folder"):
        convert_cache(tmp_path / "sizes", tmp_path / "padded")
    with pytest.raises(DataError, match="dataset: expected samples I.video_latent.pth"):
        convert_cache(clips, tmp_path / "other")
    index = tmp_path / "sizes" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "clips": None}))
    with pytest.raises(DataError, match="sizes: the cache is not finished"):
        convert_cache(tmp_path / "sizes", tmp_path / "other")
