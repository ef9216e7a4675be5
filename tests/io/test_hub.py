"""Downloads through the real client library against a small hub on this machine, with its refusals explained."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_predict.errors import CorruptFileError, DataError
from cosmos_predict.io.hub import HubFile, download_snapshot, fetch_file, list_files
from tests.io.hub_server import COMMIT, Hub

WEIGHTS = bytes(range(256)) * 4000
CONFIG = b'{"hidden": 8}'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    hub.files = {
        "owner/good": {"model.pt": WEIGHTS, "transformer/config.json": CONFIG, "empty.txt": b""},
        "owner/gated": {"model.pt": WEIGHTS},
    }
    with hub.serve():
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)  # as HF_ENDPOINT at import does
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_list_and_fetch(hub: Hub, tmp_path: Path) -> None:
    files = list_files("owner/good")
    assert [(file.path, file.size) for file in files] == [
        ("empty.txt", 0),
        ("model.pt", len(WEIGHTS)),
        ("transformer/config.json", 13),
    ]
    assert files[1].hash == hashlib.sha256(WEIGHTS).hexdigest() and len(files[2].hash) == 40
    assert [fetch_file(file, tmp_path) for file in files] == [True, True, True]
    assert (tmp_path / "model.pt").read_bytes() == WEIGHTS
    assert (tmp_path / "transformer" / "config.json").read_bytes() == CONFIG
    asked = len(hub.requests)
    assert [fetch_file(file, tmp_path) for file in files] == [False, False, False]
    assert len(hub.requests) == asked and not list(tmp_path.rglob("*.incomplete"))


def test_patterns(hub: Hub, tmp_path: Path) -> None:
    assert [file.path for file in list_files("owner/good", ["*.pt", "transformer/*"], ["model*"])] == [
        "transformer/config.json"
    ]
    folder = download_snapshot("owner/good", ["transformer/*"], local_dir=tmp_path)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["config.json"]
    with pytest.raises(
        FileNotFoundError, match=r"owner/good: no file matches \*\.jit; .* has empty\.txt, model\.pt, tra"
    ):
        list_files("owner/good", ["*.jit"])


def test_snapshot_into_the_cache(hub: Hub, tmp_path: Path) -> None:
    program = "from cosmos_predict.io.hub import download_snapshot as d; print(d('owner/good', ['transformer/*']))"
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    for endpoint in (hub.endpoint, "http://127.0.0.1:9"):  # the second time from the cache
        environment["HF_ENDPOINT"] = endpoint
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (Path(done.stdout.strip()) / "transformer" / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize("status", [401, 403])
def test_refused(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.gated["owner/gated"] = status
    (file,) = list_files("owner/gated")
    page = f"{hub.endpoint}/owner/gated"
    with pytest.raises(
        PermissionError, match=rf"owner/gated/model\.pt: .*Accept the licence .*{page} .*`hf auth login`"
    ):
        fetch_file(file, tmp_path)
    assert not list(tmp_path.iterdir())


def test_token_stays_with_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    contents = Hub()
    contents.files = hub.files
    with contents.serve():
        hub.content_endpoint = contents.endpoint  # another origin, as a content delivery network is
        assert fetch_file(list_files("owner/good")[1], tmp_path)
    assert hub.tokens[f"/owner/good/resolve/{COMMIT}/model.pt"] == "Bearer hf_secret"
    assert contents.tokens == {"/owner/good/cdn/main/model.pt": None}


def test_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such repository, or a private one .*/owner/bad .*HF_TOKEN"):
        list_files("owner/bad")
    with pytest.raises(FileNotFoundError, match=r"owner/good/x\.pt: the repository has no such file at revision main"):
        fetch_file(HubFile("owner/good", "x.pt", 5, "0" * 40, "main"), tmp_path)
    with pytest.raises(FileNotFoundError, match="owner/good: no revision 'no-such'"):
        list_files("owner/good", revision="no-such")
    with pytest.raises(ValueError, match="'a/b/c' is no repository name, expected OWNER/NAME"):
        list_files("a/b/c")


def test_damaged_content_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.damaged = {"model.pt"}
    file = list_files("owner/good")[1]
    with pytest.raises(CorruptFileError, match=r"owner/good/model\.pt: what came does not have the hash .*proxy"):
        fetch_file(file, tmp_path)
    assert not list(tmp_path.iterdir())
    hub.damaged = set()
    assert fetch_file(file, tmp_path)


def test_another_file_is_kept_unless_forced(hub: Hub, tmp_path: Path) -> None:
    file = list_files("owner/good")[1]
    mine = b"x" * len(WEIGHTS)
    (tmp_path / "model.pt").write_bytes(mine)
    with pytest.raises(DataError, match=r"model\.pt exists and is not the hub's file .*move it away, .*--force"):
        fetch_file(file, tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == mine
    assert fetch_file(file, tmp_path, force=True) and (tmp_path / "model.pt").read_bytes() == WEIGHTS


@pytest.mark.parametrize("left", [1000, len(WEIGHTS), len(WEIGHTS) + 5])
def test_partial_file_is_continued(hub: Hub, tmp_path: Path, left: int) -> None:
    file = list_files("owner/good")[1]
    (tmp_path / f".model.pt.{file.hash[:12]}.incomplete").write_bytes((WEIGHTS + b"12345")[:left])
    assert fetch_file(file, tmp_path) and (tmp_path / "model.pt").read_bytes() == WEIGHTS
    ranges = [asked for path, asked in hub.requests if path.endswith("cdn/main/model.pt")]
    assert ranges == {1000: ["bytes=1000-"], len(WEIGHTS): []}.get(left, [None])


def test_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for folder in (None, tmp_path):  # in the cache of this machine, and into an existing folder
        with pytest.raises(ConnectionError, match=r"owner/none: not in the local cache and the hub cannot be reached"):
            download_snapshot("owner/none", local_dir=folder)


def test_switched_off(tmp_path: Path) -> None:
    program = (
        "from cosmos_predict.io.hub import download_snapshot\n"
        "try:\n    download_snapshot('owner/good')\n"
        "except ConnectionError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "that HF_HUB_OFFLINE is not set" in done.stdout


def test_importing_the_module_imports_no_client_and_no_torch() -> None:
    program = (
        "import sys, cosmos_predict.io.hub, cosmos_predict.io.atomic, cosmos_predict.io.embeddings\n"
        "assert not {'huggingface_hub', 'torch', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
