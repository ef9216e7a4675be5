"""The live table of a run: videos, clips kept and rejected by reason, errors, rates, time left."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter

from loguru import logger
from tqdm import tqdm

from cosmos_predict.curate.stage import Video

INTERVAL = 20.0  # seconds between two lines where nobody watches a terminal


class Progress:
    """Two lines that refresh in place on a terminal; elsewhere a plain line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.live = total, os.isatty(2)
        self.videos = self.kept = self.errors = 0
        self.rejected = Counter[str]()
        self.start = self.said = time.monotonic()
        self.bar = tqdm(total=total, unit="video", desc="split", disable=not self.live)
        self.line = tqdm(bar_format="{desc}", position=1, leave=False, disable=not self.live)

    def close(self) -> None:
        """Leave the terminal, and say how it ended."""
        self.line.close()
        self.bar.close()
        if self.videos:
            logger.info(str(self))

    def add(self, video: Video) -> None:
        """Count a video that is through, and say what went wrong with it."""
        problems = [error for error in (video.error, *(clip.error for clip in video.clips)) if error]
        with tqdm.external_write_mode() if self.live else contextlib.nullcontext():
            for problem in problems[:5]:
                logger.error(f"{video.relative}: {problem['stage']}: {problem['message']}")
            if not video.clips and not video.error:
                logger.warning(f"{video.relative}: no clip: {video.footage.facts.get('no_clips', '')}")
        self.videos, self.errors = self.videos + 1, self.errors + len(problems)
        self.kept += 0 if video.error else sum(clip.alive for clip in video.clips)
        self.rejected.update(clip.rejected for clip in video.clips if clip.rejected)
        self.bar.update()
        self.line.set_description_str(str(self))
        if not self.live and time.monotonic() - self.said > INTERVAL:
            self.said = time.monotonic()
            logger.info(str(self))

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-3)
        left = (self.total - self.videos) * seconds / max(self.videos, 1)
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
        clips = f"clips: {self.kept} kept, {self.rejected.total()} rejected{f' ({reasons})' if reasons else ''}"
        rates = f"{60 * self.videos / seconds:.1f} videos and {60 * self.kept / seconds:.1f} clips a minute"
        return f"videos: {self.videos} of {self.total}; {clips}; {self.errors} errors; {rates}; {left / 60:.1f} minutes left"
