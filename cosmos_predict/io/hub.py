"""Downloads from the model hub, with errors that say what to do. The client library is imported when first used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosmos_predict.errors import MissingDependencyError


def download_file(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    repo_type: str = "model",
    local_dir: str | Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the local path of one file of a hub repository, downloading it unless the cache or `local_dir` has it.

    The library reads `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.

    Raises:
        PermissionError: the repository is gated or private and no accepted token was sent.
        FileNotFoundError: no such repository, revision or file.
        ConnectionError: the hub cannot be reached (or is switched off) and the file is not in the cache.
        ValueError: `repo_id` is not of the form OWNER/NAME.
        MissingDependencyError: huggingface_hub is not installed.
    """
    with _explained(repo_id, filename, revision):
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                repo_id, filename, revision=revision, repo_type=repo_type, local_dir=local_dir, endpoint=endpoint
            )
        )


def download_snapshot(
    repo_id: str,
    patterns: Sequence[str] | None = None,
    *,
    ignore: Sequence[str] | None = None,
    revision: str | None = None,
    repo_type: str = "model",
    local_dir: str | Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the local folder of a hub repository after downloading the files that match `patterns` (all if None).

    `patterns` and `ignore` are shell patterns over paths, such as `tokenizer/*`. Where the hub cannot be reached, the
    snapshot in the cache is returned; a `local_dir` is not, since nobody can tell whether it is complete. Raises as
    `download_file`.
    """
    with _explained(repo_id, None, revision):
        from huggingface_hub import HfApi, snapshot_download

        cached_only = False
        try:
            # Asked first, because snapshot_download takes an existing local_dir for complete when access is refused.
            HfApi(endpoint=endpoint).repo_info(repo_id, revision=revision, repo_type=repo_type)
        except _network_errors():
            if local_dir is not None:
                raise
            cached_only = True
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=list(patterns) if patterns is not None else None,
                ignore_patterns=list(ignore) if ignore is not None else None,
                revision=revision,
                repo_type=repo_type,
                local_dir=local_dir,
                endpoint=endpoint,
                local_files_only=cached_only,
            )
        )


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
    permission = (
        f"{what}: the hub refused access. Accept the licence on the repository's page, then log in with "
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
            f"{what}: no such repository, or a private one that needs a login (`hf auth login` or HF_TOKEN)"
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
