"""Downloads from the model hub, with errors that say what to do. The client library is imported when first used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_predict.errors import CorruptFileError, DataError, MissingDependencyError


def download_snapshot(
    repo_id: str,
    patterns: Sequence[str] = ("*",),
    *,
    revision: str | None = None,
    repo_type: str = "model",
    local_dir: str | Path | None = None,
) -> Path:
    """Return the local folder of a hub repository after downloading the files that match `patterns` (all by default).

    patterns: shell patterns over paths, such as `tokenizer/*`.
    local_dir: where the files go, as by `fetch_file`; None: the library's cache, whose snapshot is returned where the hub
        cannot be reached.

    The library reads `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.

    Raises:
        PermissionError: the repository is gated or private and no accepted token was sent.
        FileNotFoundError: no such repository, revision or file.
        ConnectionError: the hub cannot be reached (or is switched off) and the files are not in the cache.
        ValueError: `repo_id` is not of the form OWNER/NAME.
        MissingDependencyError: huggingface_hub is not installed.
    """
    if local_dir is not None:
        for file in list_files(repo_id, patterns, revision=revision, repo_type=repo_type):
            fetch_file(file, Path(local_dir))
        return Path(local_dir)
    with _explained(repo_id, None, revision):
        from huggingface_hub import HfApi, snapshot_download

        what: dict[str, Any] = {"repo_id": repo_id, "revision": revision, "repo_type": repo_type}
        cached_only = False
        try:
            # Asked first: snapshot_download returns what the cache has when access is refused, complete or not.
            HfApi().repo_info(**what)
        except _network_errors():
            cached_only = True
        return Path(snapshot_download(**what, allow_patterns=list(patterns), local_files_only=cached_only))


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository: its path there, size in bytes, and hash (hex: sha256 of a large file, git's of a small)."""

    repo_id: str
    path: str
    size: int
    hash: str
    revision: str | None = None
    repo_type: str = "model"

    def matches(self, path: Path) -> bool:
        """Say whether the file at `path` has this size and hash (reads all of it)."""
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if len(self.hash) == 64 else hashlib.sha1(b"blob %d\0" % self.size)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: digest).hexdigest() == self.hash


def list_files(
    repo_id: str,
    patterns: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    revision: str | None = None,
    repo_type: str = "model",
) -> list[HubFile]:
    """Return the files of a repository whose paths match one of `patterns` and none of `ignore`, sorted by path.

    Raises as `download_snapshot`, and FileNotFoundError where no file matches.
    """
    with _explained(repo_id, None, revision):
        from huggingface_hub import HfApi, RepoFile
        from huggingface_hub.utils import filter_repo_objects

        # Asked first, because list_repo_tree tries for half a minute where the hub cannot be reached.
        commit = HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type).sha
        tree = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
        there = sorted((entry for entry in tree if isinstance(entry, RepoFile)), key=lambda entry: entry.path)
    chosen = filter_repo_objects(
        there, allow_patterns=list(patterns), ignore_patterns=list(ignore), key=lambda entry: entry.path
    )
    hashed = [(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id) for entry in chosen]
    files = [HubFile(repo_id, *entry, commit, repo_type) for entry in hashed]
    if not files:
        names = ", ".join(entry.path for entry in there[:8]) or "nothing"
        raise FileNotFoundError(f"{repo_id}: no file matches {' or '.join(patterns)}; the repository has {names}")
    return files


def fetch_file(file: HubFile, local_dir: Path, *, force: bool = False) -> bool:
    """Make `local_dir/file.path` the hub's file; return False where it was so already.

    What an interrupted download left (`.NAME.HASH.incomplete`, beside the target) is continued, which the hub's own
    functions no longer do. The file gets its name once size and hash are right. `force` replaces another file of that name.

    Raises as `download_snapshot`, DataError where another file has the name, and CorruptFileError where what came is not
    what the hub lists.
    """
    target = local_dir / file.path
    if target.exists() and file.matches(target):
        return False
    if target.exists() and not force:
        raise DataError(
            f"{target} exists and is not the hub's file ({file.size} bytes, hash {file.hash[:12]}...): "
            "move it away, or replace it with --force"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{file.hash[:12]}.incomplete")
    with _explained(file.repo_id, file.path, file.revision), partial.open("ab") as stream:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        if stream.tell() > file.size:
            stream.truncate(0)
        try:
            url = hf_hub_url(file.repo_id, file.path, revision=file.revision, repo_type=file.repo_type)
            headers, done = {**build_hf_headers(), "Accept-Encoding": "identity"}, stream.seek(0, os.SEEK_END)
            http_get(
                url, stream, resume_size=done, headers=headers, expected_size=file.size, displayed_filename=file.path
            )
        except BaseException:
            if not stream.tell():
                partial.unlink()
            raise
        stream.flush()
        os.fsync(stream.fileno())
    if not file.matches(partial):
        partial.unlink()
        raise CorruptFileError(
            f"{file.repo_id}/{file.path}: what came does not have the hash that the hub lists ({file.hash[:12]}...), and was "
            "removed. Run the command again; if this repeats, look for a proxy that changes files"
        )
    os.replace(partial, target)
    return True


@contextlib.contextmanager
def _explained(repo_id: str, filename: str | None, revision: str | None) -> Iterator[None]:
    """Turn the library's errors into built-in ones with advice."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingDependencyError(
            f"downloading {repo_id} needs the package huggingface-hub: pip install huggingface-hub"
        ) from error
    what = f"{repo_id}/{filename}" if filename else repo_id
    at = f" at revision {revision}" if revision else ""
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{repo_id}"
    permission = (
        f"{what}: the hub refused access. Accept the licence on the repository's page, {page} , then log in with "
        "`hf auth login` or set HF_TOKEN to a token that may read it."
    )
    unreachable = (
        f"{what}{at}: not in the local cache and the hub cannot be reached. Check the network (HF_ENDPOINT, proxies) "
        "and that HF_HUB_OFFLINE is not set, or copy the files there and pass their path."
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(permission) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: no such repository, or a private one that needs a login (see {page} ; `hf auth login` or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id}: no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(unreachable) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{what}: the repository has no such file{at}") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository name, expected OWNER/NAME ({error})") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise PermissionError(permission) from error
        raise ConnectionError(f"{what}: the hub answered with HTTP status {status}; try again later") from error
    except Exception as error:
        if isinstance(error, _network_errors()):
            raise ConnectionError(unreachable) from error
        raise  # disk full, no permission on the cache folder, ...: the system's message says it best


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what is raised when the hub cannot be reached: the system's errors and the HTTP library's own."""
    classes: list[type[Exception]] = [ConnectionError, TimeoutError]
    for library, name in (
        ("httpx2", "TransportError"),
        ("httpx", "TransportError"),
        ("requests.exceptions", "ConnectionError"),
        ("requests.exceptions", "Timeout"),
    ):
        if library in sys.modules:  # which one the hub's client uses depends on its version
            classes.append(getattr(sys.modules[library], name))
    return tuple(classes)
