"""Where curation reads and writes: a folder, or a prefix `s3://BUCKET/KEY` (any place that fsspec knows) through fsspec.

Credentials and endpoint of S3 come from where its tools look for them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_PROFILE, ...
A file appears whole or not at all: locally by rename or link, remotely by one upload.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from cosmos_predict.errors import ConfigError, DataError, MissingDependencyError
from cosmos_predict.io.atomic import atomic_path

AT_ONCE = 16  # transfers
PAUSE = 30.0  # seconds between two uploads of what has changed
PREFIX = "curate-copy-"
DATASET = "cosmos_predict2_video2world_dataset"  # the folder that the trainer reads, below the output folder


class Store:
    """The files below a root; a place is a path relative to it. profile: section of the AWS files, "" for the usual one."""

    def __init__(self, root: str | Path, profile: str = "") -> None:
        self.remote = "://" in str(root)
        self.root = str(root).rstrip("/") if self.remote else os.path.abspath(root)
        self.profile = profile
        # Of a folder: where files are on their way, so that a killed process leaves none.
        self.staging: Path | None = None

    @cached_property
    def system(self) -> Any:
        """The fsspec file system of a remote root; raises MissingDependencyError where its package is absent."""
        try:
            import fsspec

            options = {"profile": self.profile} if self.profile else {}
            return fsspec.url_to_fs(self.root, use_listings_cache=False, **options)[0]
        except ImportError as error:
            raise MissingDependencyError(f"{self.root}: {error}; pip install 'cosmos-predict[curate]'") from error

    def __getstate__(self) -> dict[str, Any]:  # a file system holds threads: each process makes its own
        return {key: value for key, value in self.__dict__.items() if key != "system"}

    def uri(self, place: str) -> str:
        """Return the full path or address of a place."""
        return f"{self.root}/{place}"

    def files(self, below: str = "") -> dict[str, list[Any]]:
        """Return {place: [size, time of change or tag]} of all files below a place, sorted; not of names with a dot first."""
        if self.remote:
            top = self.uri(below).rstrip("/")
            try:
                found = self.system.find(top, detail=True)
            except FileNotFoundError:
                return {}
            except Exception as error:  # of botocore: no credentials, no such host, ...
                raise DataError(f"{top}: cannot be listed ({type(error).__name__}: {error})") from error
            start = len(self.system._strip_protocol(self.root)) + 1
            marks = {
                path[start:]: [entry["size"], entry.get("ETag") or entry.get("mtime")] for path, entry in found.items()
            }
        else:
            marks = {}
            for folder, folders, names in os.walk(Path(self.root, below), onerror=self._unlistable):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for path in (Path(folder, name) for name in names):
                    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                        stat = path.stat()
                        marks[path.relative_to(self.root).as_posix()] = [stat.st_size, stat.st_mtime_ns]
        shown = (place for place in marks if "/." not in f"/{place}")
        return {place: marks[place] for place in sorted(shown, key=Path)}

    @staticmethod
    def _unlistable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # nothing is there, or no longer
            raise DataError(f"{error.filename}: cannot be listed ({type(error).__name__}: {error.strerror})") from error

    def read(self, place: str) -> str | None:
        """Return a text, None where there is none."""
        try:
            data = self.system.cat_file(self.uri(place)) if self.remote else Path(self.uri(place)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data.decode("utf-8")

    def has(self, place: str) -> bool:
        """Return whether a file is there."""
        return bool(self.system.exists(self.uri(place))) if self.remote else Path(self.uri(place)).is_file()

    def write(self, place: str, text: str) -> None:
        """Write a text, whole or not at all."""
        if self.remote:
            self.system.pipe_file(self.uri(place), text.encode("utf-8"))
        else:
            with atomic_path(self.uri(place), self.staging) as temporary:
                temporary.write_bytes(text.encode("utf-8"))

    def put(self, place: str, source: Path) -> None:
        """Bring a file of this machine to its place: a link where that is possible, else a copy."""
        if self.remote:
            self.system.put_file(str(source), self.uri(place))
            return
        with atomic_path(self.uri(place), self.staging) as temporary:
            try:
                os.link(source, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, temporary)

    def fetch(self, place: str, target: Path) -> Path:
        """Return a file as one of this machine: itself, or a copy at `target`. Raises DataError where it cannot be read."""
        if not self.remote:
            return Path(self.uri(place))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.system.get_file(self.uri(place), str(target))
        except Exception as error:
            raise DataError(f"{self.uri(place)}: cannot be fetched ({type(error).__name__}: {error})") from error
        return target

    def remove(self, place: str) -> None:
        """Remove a file where there is one."""
        if not self.remote:
            Path(self.uri(place)).unlink(missing_ok=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                self.system.rm_file(self.uri(place))

    def check_writable(self) -> None:
        """Raise ConfigError, with the reason, where nothing can be written here."""
        place = f".work/{uuid.uuid4().hex}"
        try:
            self.write(place, "")
            self.remove(place)
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{self.root}: cannot write there ({type(error).__name__}: {reason})") from error

    @contextlib.contextmanager
    def local(self, below: str, scratch: Path, without: str = "") -> Iterator[Path]:
        """Yield a folder as one of this machine; what the body adds, changes or removes in a copy is so there, too, soon.

        Also where the body fails, or its process is killed: the next one goes on from what was there half a minute before.
        without: a folder in it that the body does not need.
        """
        if not self.remote:
            yield Path(self.uri(below))
            return
        from loguru import logger

        wanted = [place for place in self.files(below) if not without or not place.startswith(f"{below}/{without}/")]
        copy, ended = Store(scratch), threading.Event()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda place: self.fetch(place, scratch / place), wanted))
            known = copy.files(below)

            def upload(place: str) -> None:
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    self.put(place, scratch / place)

            def follow() -> None:
                there = copy.files(below)
                list(pool.map(self.remove, known.keys() - there.keys()))
                list(pool.map(upload, [place for place, mark in there.items() if known.get(place) != mark]))
                known.clear()
                known.update(there)

            def keep_up() -> None:
                while not ended.wait(PAUSE):
                    try:
                        follow()
                    except Exception as error:
                        logger.warning(f"{self.uri(below)}: cannot be written to ({error}); it is tried again")

            with ThreadPoolExecutor(1) as keeper:
                keeper.submit(keep_up)
                try:
                    yield scratch / below
                finally:
                    ended.set()
                    keeper.shutdown()
                    follow()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder of this machine, which is removed in the end; those that killed processes left go now."""
    from cosmos_predict.io.lock import hold

    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(ConfigError, OSError), hold(lock, "its process runs"):
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = made = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}"))
    try:
        with hold(made / "lock", f"{made}: another process has it"):
            folder = made.rename(made.with_name(made.name.removeprefix("new-")))
            yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
