"""Any server with OpenAI's chat interface: what it is asked, and what happens where it does not answer."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import UnavailableError

MANY = 32  # requests that fail one after the other, after which all work may end
DEATHS = 2  # of a server that is ours, while one request was asked
GATEWAY = (502, 503, 504)  # what stands before a server says that there is none
CONTINUE = "the run ends here, the same command goes on where it was"


class Answer(NamedTuple):
    """What a model says, whether it came to its end, and how many tokens question and answer have (0: not known)."""

    text: str
    whole: bool
    prompt_tokens: int = 0
    output_tokens: int = 0


class Endpoint:
    """A server with OpenAI's chat interface. model: "auto" for its first. media: send "frames" as jpegs, or a "video".

    retries: after refused, dropped or timed-out connections and passing failures of the server, 1, 2, 4 ... seconds later.
    patience: seconds for which a request is tried on where the server is gone; then all work ends (UnavailableError), and so
    it does where all of many requests have failed for that long; 0: such a request just fails.
    """

    def __init__(
        self, url: str, model: str, media: str = "frames", retries: int = 3, workers: int = 8, patience: float = 0.0
    ) -> None:
        self.url, self.model, self.media, self.retries, self.workers = url.rstrip("/"), model, media, retries, workers
        self.patience, self.lost, self.failures = patience, "", list[float]()  # times of those since the last answer
        self.deaths, self.woken = 0, 0.0  # of a server that is ours: in a row; when it was last started again
        self.turn: Any = contextlib.nullcontext()
        self.key, self.extra = os.environ.get("OPENAI_API_KEY", ""), {}

    gpus = 0.0  # of this machine

    def __deepcopy__(self, memo: dict[int, Any]) -> Endpoint:
        return self  # one for all

    def open(self, device: str = "cpu") -> None:
        """Find out the model; raises ConnectionError where nothing answers, PermissionError where the key is refused."""
        self.lost, patience, self.patience = "", self.patience, 0.0
        try:
            found = self._ask("models")
            self.model = found["data"][0]["id"] if self.model == "auto" else self.model
        except ConnectionError:
            if self.model == "auto" or self._silent():  # else a server that has no such list
                raise
        finally:
            self.patience = patience

    def close(self) -> None:
        """Nothing is kept open."""

    def cease(self) -> None:
        """Let requests in hand fail soon."""
        self.lost = self.lost or "the run ends"

    def answer(self, prompt: str, frames: np.ndarray | None, fps: float, system: str, tokens: int) -> Answer:
        """Return the model's answer to a prompt, after frames (n, H, W, 3) where given."""
        content = [*([] if frames is None else self._shown(frames, fps)), {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        request = {"model": self.model, "messages": messages, "temperature": 0.1, "max_tokens": tokens, **self.extra}
        reply = self._ask("chat/completions", request)
        try:
            choice, used = reply["choices"][0], reply.get("usage") or {}
            counts = [int(used.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
            return Answer(str(choice["message"]["content"] or ""), choice["finish_reason"] != "length", *counts)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ConnectionError(f"{self.url}: no answer in the reply {str(reply)[:200]}") from error

    def _shown(self, frames: np.ndarray, fps: float) -> list[dict[str, Any]]:
        """Return the parts of a message that hold the frames."""
        if self.media == "video":
            with tempfile.TemporaryDirectory() as folder:
                write_video(path := Path(folder) / "shown.mp4", frames, fps)
                return [_inline("video_url", "video/mp4", path.read_bytes())]
        pictures = [io.BytesIO() for _ in frames]
        for frame, picture in zip(frames, pictures, strict=True):
            Image.fromarray(frame).save(picture, "JPEG", quality=90)
        return [_inline("image_url", "image/jpeg", picture.getvalue()) for picture in pictures]

    def _request(self, place: str, content: dict[str, Any] | None = None) -> urllib.request.Request:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.url}/{place}", data, {"Content-Type": "application/json"})
        if self.key:  # which a redirect must not carry elsewhere
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        return request

    def _ask(self, place: str, content: dict[str, Any] | None = None) -> Any:
        """Return the server's reply.

        Raises PermissionError or ConnectionError for a request that failed, UnavailableError where others will, too.
        """
        began, deaths, woken, spared, where = time.monotonic(), 0, self.woken, False, f"{self.url}/{place}"
        with contextlib.ExitStack() as alone:
            for tries in itertools.count(1):
                if self.lost:
                    raise UnavailableError(self.lost)
                pause, there = min(2.0 ** min(tries - 1, 5), 30.0), False
                try:
                    with urllib.request.urlopen(self._request(place, content), timeout=300) as reply:
                        answer = json.load(reply)
                    self.failures, self.deaths = [], 0
                    return answer
                except urllib.error.HTTPError as error:
                    said = f"HTTP status {error.code}: {' '.join(error.read(400).decode(errors='replace').split())}"
                    if error.code < 500 and error.code not in (408, 409, 425, 429):
                        raise self._refused(where, said, error.code) from error
                    wish, there = error.headers.get("Retry-After") or "", error.code not in GATEWAY
                    pause = min(float(wish), 60.0) if tries <= self.retries and wish.isdigit() else pause
                except (OSError, http.client.HTTPException, ValueError) as error:
                    said, there = str(error) or type(error).__name__, isinstance(error, ValueError)
                if tries > self.retries:
                    silent = self._silent()
                    if self.woken != woken:  # the server died while it was asked this, maybe because of it
                        deaths += 1
                        if deaths == 1:
                            alone.enter_context(self.turn)
                        woken = self.woken
                        if deaths > DEATHS:
                            died = f"the server died {deaths} times while it was asked this"
                            raise self._refused(where, f"{died}, the last times this alone")
                        began = time.monotonic()
                    elif not self.patience or (not silent and (there or spared)):
                        given_up = f"given up after {tries} tries ({said}); is --openai-base-url right?"
                        raise self._refused(where, given_up)
                    elif silent and time.monotonic() - began > self.patience:
                        self.lost = f"{where}: no answer for {time.monotonic() - began:.0f} s ({silent}); {CONTINUE}"
                    spared = not silent  # it may have come back just now: once more
                self._rest(pause)

    def _refused(self, where: str, said: str, status: int = 0) -> OSError:
        """Return the error of a request that failed; one that ends the run where many in a row have, for long."""
        self.failures = [*self.failures, time.monotonic()]
        since = time.monotonic() - self.failures[0]
        if self.patience and len(self.failures) > MANY and since > self.patience:
            self.lost = f"{where}: every request has failed for {since:.0f} s, the last with {said}; {CONTINUE}"
            return UnavailableError(self.lost)
        if status in (401, 403):
            advice = "set OPENAI_API_KEY to a key that it accepts"
            return PermissionError(f"{self.url}: the server refused access; {advice} ({said})")
        return ConnectionError(f"{where}: {said}")

    def _silent(self) -> str:
        """Return why nothing answers there, "" where something does."""
        try:
            urllib.request.urlopen(self._request("models"), timeout=30).close()
        except urllib.error.HTTPError as error:
            return f"HTTP status {error.code}" if error.code in GATEWAY else ""
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        return ""

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.lost and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


def _inline(part: str, kind: str, data: bytes) -> dict[str, Any]:
    return {"type": part, part: {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}
