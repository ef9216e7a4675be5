"""The live table of a run: videos, clips kept and rejected by reason, errors, rates, time left."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter

from loguru import logger
from tqdm import tqdm

from cosmos_predict.curate.stage import Clip, Video

INTERVAL = 20.0  # seconds between two lines where nobody watches a terminal
TICK = 1.0  # seconds between two looks at the clock


class Progress:
    """Two lines that refresh in place on a terminal; elsewhere a plain line now and then, whether or not a video ends.

    Clips count as soon as they leave the stage `last`, or are rejected, and once more, for good, when their video is through.
    Several threads may tell it.
    """

    def __init__(self, total: int, last: str = "") -> None:
        self.total, self.last, self.live = total, last, os.isatty(2)
        self.videos = self.kept = self.errors = 0
        self.rejected, self.through = Counter[str](), Counter[str]()  # by reason; by stage
        self.hand = dict[str, tuple[int, Counter[str]]]()  # of a video in hand: its clips, and those that are through
        self.start = self.said = time.monotonic()
        self.bar = tqdm(total=total, unit="video", desc="split", disable=not self.live)
        self.line = tqdm(bar_format="{desc}", position=1, leave=False, disable=not self.live)
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        self.clock.start()

    def _tick(self) -> None:
        while not self.ended.wait(TICK):
            with self.lock:
                self._say()

    def close(self) -> None:
        """Leave the terminal, and say how it ended."""
        self.ended.set()
        self.clock.join()
        self.line.close()
        self.bar.close()
        if self.videos:
            logger.info(str(self))

    def passed(self, stage: str, clip: Clip) -> None:
        """Count a clip that is through a stage."""
        with self.lock:
            self.through[stage] += 1
            if stage == self.last or not clip.alive:
                counts = self.hand.setdefault(clip.video.relative, (len(clip.video.clips), Counter[str]()))[1]
                counts["lost" if clip.lost else f"-{clip.rejected}"] += 1

    def add(self, video: Video) -> None:
        """Count a video that is through, and say what went wrong with it."""
        problems = [error for error in (video.error, *(clip.error for clip in video.clips)) if error]
        with self.lock:
            with tqdm.external_write_mode() if self.live else contextlib.nullcontext():
                for problem in problems[:5]:
                    logger.error(f"{video.relative}: {problem['stage']}: {problem['message']}")
                if not video.clips and not video.error:
                    logger.warning(f"{video.relative}: no clip: {video.footage.facts.get('no_clips', '')}")
            self.hand.pop(video.relative, None)
            self.videos, self.errors = self.videos + 1, self.errors + len(problems)
            self.kept += 0 if video.error else sum(clip.alive for clip in video.clips)
            self.rejected.update(clip.rejected for clip in video.clips if clip.rejected)
            self.bar.update()
            self._say()

    def _say(self) -> None:
        self.line.set_description_str(str(self))
        if not self.live and time.monotonic() - self.said > INTERVAL:
            self.said = time.monotonic()
            logger.info(str(self))

    def __str__(self) -> str:
        seconds, rejected, kept, part = max(time.monotonic() - self.start, 1e-3), self.rejected.copy(), self.kept, 0.0
        for count, counts in self.hand.values():
            part += counts.total() / count
            kept += counts["-"]
            rejected.update({name[1:]: number for name, number in counts.items() if name[1:] and name[0] == "-"})
        done = self.videos + part
        left = f"{(self.total - done) * seconds / done / 60:.1f} minutes left" if done else "time left: not known yet"
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
        clips = f"clips: {kept} kept, {rejected.total()} rejected{f' ({reasons})' if reasons else ''}"
        rates = f"{60 * done / seconds:.1f} videos and {60 * kept / seconds:.1f} clips a minute"
        stages = ", ".join(f"{name} {count}" for name, count in self.through.items())
        told = f"{clips}; {self.errors} errors; {rates}{f'; clips by stage: {stages}' if stages else ''}"
        return f"videos: {self.videos} of {self.total}; {told}; {left}"
