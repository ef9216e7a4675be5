"""Videos of a bucket, and the captions beside them, brought to this machine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from cosmos_predict.curate.listing import beside
from cosmos_predict.curate.stage import Stage, Video
from cosmos_predict.curate.storage import Store


class Fetch(Stage):
    """Brings a video, and the captions beside it, into its scratch folder.

    others: files of `source`, captions among them. captions_only: leave the video where it is.
    """

    name, workers = "fetch", 4

    def __init__(self, source: Store, others: Collection[str], captions_only: bool = False) -> None:
        self.source, self.others, self.captions_only = source, frozenset(others), captions_only
        above, _, self.folder = source.root.rpartition("/")
        self.above = Store(above, source.profile)  # "s3:/" above a bucket
        self.metas = frozenset[str]()

    def setup(self) -> None:
        """Look for captions in the folder `metas` beside that of the videos, too."""
        if self.above.remote:
            self.metas = frozenset(self.above.files("metas"))

    def process(self, item: Video) -> None:
        folder, meta = item.scratch / self.folder, f"metas/{PurePosixPath(item.relative).stem}.txt"
        for place in beside(item.relative) & self.others:
            self.source.fetch(place, folder / place)
        if "/" not in item.relative and meta in self.metas:
            self.above.fetch(meta, item.scratch / meta)
        item.copy = folder / item.relative
        if not self.captions_only:
            self.source.fetch(item.relative, item.copy)
