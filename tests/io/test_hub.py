"""Downloads through the real client library against a small hub on this machine, with its refusals explained."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_predict.io.hub import download_file, download_snapshot

CONTENT = b'{"hidden": 8}'
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the model hub does: owner/good has one file, owner/gated wants a licence, all else is not there."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        body, status, headers = b"", 200, {}
        if "owner/gated" in self.path:
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif "owner/good" not in self.path:
            status, headers = 401, {"X-Error-Code": "RepoNotFound"}
        elif "/resolve/" in self.path and self.path.endswith("/transformer/config.json"):
            body, headers = CONTENT, {"ETag": '"abc"', "X-Repo-Commit": COMMIT}
        elif "/resolve/" in self.path:
            status, headers = 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        elif "/revision/no-such" in self.path:
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif "/tree/" in self.path:
            body = b'[{"type": "file", "path": "transformer/config.json", "oid": "abc", "size": 13}]'
            headers = {"Content-Type": "application/json"}
        elif self.path.startswith("/api/models/owner/good"):
            body = b'{"id": "owner/good", "sha": "%s", "siblings": [{"rfilename": "transformer/config.json"}]}'
            body, headers = body % COMMIT.encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(endpoint: str, tmp_path: Path) -> None:
    path = download_file("owner/good", "transformer/config.json", local_dir=tmp_path / "a", endpoint=endpoint)
    assert path == tmp_path / "a" / "transformer" / "config.json" and path.read_bytes() == CONTENT
    folder = download_snapshot("owner/good", ["transformer/*"], local_dir=tmp_path / "b", endpoint=endpoint)
    assert (folder / "transformer" / "config.json").read_bytes() == CONTENT
    folder = download_snapshot("owner/good", ["tokenizer/*"], local_dir=tmp_path / "c", endpoint=endpoint)
    assert not (folder / "transformer").exists()


def test_refused(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(
        PermissionError, match=r"owner/gated/x\.pt: .*Accept the licence .*`hf auth login` or set HF_TOKEN"
    ):
        download_file("owner/gated", "x.pt", local_dir=tmp_path, endpoint=endpoint)
    with pytest.raises(PermissionError, match=r"owner/gated: .*Accept the licence"):
        download_snapshot("owner/gated", local_dir=tmp_path, endpoint=endpoint)


def test_not_there(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such repository, or a private one"):
        download_file("owner/bad", "x.pt", local_dir=tmp_path, endpoint=endpoint)
    with pytest.raises(FileNotFoundError, match=r"owner/good/x\.pt: the repository has no such file at revision main"):
        download_file("owner/good", "x.pt", revision="main", local_dir=tmp_path, endpoint=endpoint)
    with pytest.raises(FileNotFoundError, match="owner/good: no revision 'no-such'"):
        download_snapshot("owner/good", revision="no-such", local_dir=tmp_path, endpoint=endpoint)
    with pytest.raises(ValueError, match="'a/b/c' is no repository name, expected OWNER/NAME"):
        download_file("a/b/c", "x.pt", local_dir=tmp_path, endpoint=endpoint)


def test_unreachable(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    for folder in (None, tmp_path):  # in the cache of this machine, and into an existing folder
        with pytest.raises(ConnectionError, match=r"owner/none: not in the local cache and the hub cannot be reached"):
            download_snapshot("owner/none", local_dir=folder, endpoint=nowhere)


def test_switched_off(tmp_path: Path) -> None:
    program = (
        "from cosmos_predict.io.hub import download_file\n"
        "try:\n    download_file('owner/good', 'x.pt')\n"
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
