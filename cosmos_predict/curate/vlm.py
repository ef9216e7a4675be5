"""Models that look at frames and answer in words: any OpenAI-compatible endpoint, or weights here by vLLM or transformers."""

from __future__ import annotations

import base64
import ctypes
import functools
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosmos_predict.curate.media import read_parts
from cosmos_predict.curate.spans import caption_windows, shown_frames, shown_size
from cosmos_predict.curate.stage import Clip, Window
from cosmos_predict.data.video_reader import probe, write_video
from cosmos_predict.errors import CheckpointError, ConfigError, DataError, MissingDependencyError

Options = Mapping[str, Any]
_LIBC = ctypes.CDLL(None)  # loaded before any fork


def cut_windows(clip: Clip, options: Options) -> list[Window]:
    """Return the windows of a clip that is transcoded."""
    sizes = (options["captioning_window_size"], options["captioning_remainder_threshold"])
    return [Window(*span) for span in caption_windows(clip.frames, *sizes)]


def watch(clip: Clip, window: Window, rate: float = 2.0) -> np.ndarray:
    """Return what a model is shown of a window, uint8 RGB (n, H, W, 3): see `spans.shown_frames` and `shown_size`."""
    fps = probe(clip.path).fps
    counts = [len(shown_frames((other.start, other.end), fps, rate)) for other in clip.windows or [window]]
    shown, resized = shown_frames((window.start, window.end), fps, rate), list[np.ndarray]()
    for part in read_parts(clip.path, shown):
        height, width = shown_size(part.shape[1], part.shape[2], sum(counts))
        images = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in part]
        resized += [np.asarray(image) for image in images]
    return np.stack(resized)


class Endpoint:
    """A server with OpenAI's chat interface. model: "auto" for its first. media: send "frames" as jpegs, or a "video".

    retries: after refused, dropped or timed-out connections and passing failures of the server, 1, 2, 4 ... seconds later.
    """

    def __init__(self, url: str, model: str, media: str = "frames", retries: int = 3, workers: int = 8) -> None:
        self.url, self.model, self.media, self.retries, self.workers = url.rstrip("/"), model, media, retries, workers
        self.key, self.extra = os.environ.get("OPENAI_API_KEY", ""), {}

    def open(self) -> None:
        """Find out the model; raises ConnectionError where nothing answers, PermissionError where the key is refused."""
        self.model = self._ask("models")["data"][0]["id"] if self.model == "auto" else self.model

    def close(self) -> None:
        """Nothing is kept open."""

    def answer(self, prompt: str, frames: np.ndarray | None, fps: float, system: str, tokens: int) -> tuple[str, bool]:
        """Return the model's answer to a prompt, after frames (n, H, W, 3) where given, and whether it came to its end."""
        content = [*([] if frames is None else self._shown(frames, fps)), {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        request = {"model": self.model, "messages": messages, "temperature": 0.1, "max_tokens": tokens, **self.extra}
        reply = self._ask("chat/completions", request)
        try:
            choice = reply["choices"][0]
            return str(choice["message"]["content"] or ""), choice["finish_reason"] != "length"
        except (KeyError, IndexError, TypeError) as error:
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

    def _ask(self, place: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request, said = urllib.request.Request(f"{self.url}/{place}", data, {"Content-Type": "application/json"}), ""
        if self.key:  # which a redirect must not carry elsewhere
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        for pause in [2.0**attempt for attempt in range(self.retries)] + [None]:
            try:
                with urllib.request.urlopen(request, timeout=300) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                said = f"HTTP status {error.code}: {' '.join(error.read(400).decode(errors='replace').split())}"
                if error.code in (401, 403):
                    advice = "set OPENAI_API_KEY to a key that it accepts"
                    raise PermissionError(f"{self.url}: the server refused access; {advice} ({said})") from error
                if error.code < 500 and error.code not in (408, 409, 425, 429):
                    raise ConnectionError(f"{self.url}/{place}: {said}") from error
                wish = error.headers.get("Retry-After") or ""
                pause = float(wish) if pause and wish.isdigit() else pause
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = str(error) or type(error).__name__
            if pause is not None:
                time.sleep(min(pause, 60.0))
        tries = f"given up after {self.retries + 1} tries"
        raise ConnectionError(f"{self.url}/{place}: {tries} ({said}); is --openai-base-url right?")


class Server(Endpoint):
    """A folder of weights behind `vllm serve` on this machine, started by the first `open` and ended by the last `close`."""

    def __init__(self, path: Path, workers: int = 8, gpus: int = 1) -> None:
        super().__init__("", str(path), "video", workers=workers)
        self.gpus, self.users, self.process = gpus, 0, None
        self.key, self.extra = "", {"top_p": 0.001, "repetition_penalty": 1.05, "min_tokens": 16}

    def open(self) -> None:
        self.users += 1
        if self.process is not None:
            return
        if (program := shutil.which("vllm")) is None:
            raise MissingDependencyError("no program vllm: pip install vllm, or --captioning-backend transformers")
        require_weights(Path(self.model))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        self.url = f"http://127.0.0.1:{address[1]}/v1"
        command = [program, "serve", self.model, "--host", address[0], "--port", str(address[1])]
        command += ["--max-model-len", "32768", "--gpu-memory-utilization", "0.85"]
        command += ["--tensor-parallel-size", str(self.gpus), "--media-io-kwargs", '{"video": {"num_frames": -1}}']
        with tempfile.TemporaryFile() as said:
            own: dict[str, Any] = {"start_new_session": True, "preexec_fn": _end_with_parent}
            self.process = subprocess.Popen(command, stdout=said, stderr=said, **own)
            while not _listens(address):
                if self.process.poll() is not None:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise RuntimeError(f"vllm serve {self.model} ended with status {self.process.returncode}: {last}")
                time.sleep(0.2)

    def close(self) -> None:
        self.users -= 1
        if self.process is not None and not self.users:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()
            self.process = None


class Local:
    """A folder of weights in this process, by transformers; on the GPU where there is one. Answers are the likeliest words."""

    workers = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: Any = None

    def open(self) -> None:
        """Load the weights, once."""
        if self.model is not None:
            return
        require_weights(self.path)
        import torch
        import transformers

        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        names = transformers.AutoConfig.from_pretrained(self.path).architectures or [""]
        kind = getattr(transformers, names[0], None)
        if kind is None:
            raise CheckpointError(f"{self.path}: config.json names no architecture of transformers, but {names}")
        self.model = kind.from_pretrained(self.path, dtype=dtype).eval().to(device)
        self.processor, self.lock = transformers.AutoProcessor.from_pretrained(self.path), threading.Lock()

    def close(self) -> None:
        """Leave the weights: another stage may use them."""

    def answer(self, prompt: str, frames: np.ndarray | None, fps: float, system: str, tokens: int) -> tuple[str, bool]:
        """As `Endpoint.answer`."""
        import torch

        content: Any = prompt if frames is None else [{"type": "video"}, {"type": "text", "text": prompt}]
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        video = {}
        if frames is not None:
            metadata = {"fps": fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
            video = {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
        inputs = self.processor(text=[text], return_tensors="pt", **video).to(self.model.device)
        with self.lock, torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, repetition_penalty=1.05)
        words = made[0, inputs["input_ids"].shape[1] :]
        return self.processor.decode(words, skip_special_tokens=True), len(words) < tokens


Model = Endpoint | Local


def build_model(name: str, options: Options) -> Model:
    """Return a model by its published name; "openai" is the endpoint. `open` raises ConfigError where its weights are not."""
    workers = options["api_caption_batch_size"]
    if name == "openai":
        url = options["openai_base_url"] or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        return Endpoint(url, options["openai_model"], options["openai_media"], options["openai_max_retries"], workers)
    path, backend = Path(options["model_weights_path"]) / prompts()["models"][name], options["captioning_backend"]
    if backend == "vllm" or (backend == "auto" and shutil.which("vllm")):
        return Server(path, workers, options["qwen_num_gpus_per_worker"])
    return Local(path)


@functools.cache
def prompts() -> dict[str, Any]:
    """Return which models there are and what they are asked: `prompts.yaml`."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("prompts.yaml").read_text(encoding="utf-8"))


def require_weights(path: Path) -> None:
    """Raise ConfigError where nothing is at `path`."""
    if not path.exists():
        command = f"python scripts/download_curate_models.py --models {prompts()['downloads'].get(path.name, 'NAME')}"
        raise ConfigError(f"{path}: no weights there; {command} fetches them, --model-weights-path says where they are")


def final_answer(text: str) -> str:
    """Return what a reasoning model answers: the text in <answer> where there is one, without what it thinks before."""
    text = text.rpartition("</think>")[2]
    match = re.search("<answer>(.*?)(</answer>|$)", text, re.DOTALL | re.IGNORECASE)
    return (match[1] if match else text).strip()


def yes_or_no(text: str) -> dict[str, bool]:
    """Return the answers of a questionnaire: the first JSON object of a reply, its keys with _ for spaces.

    Raises DataError where there is none.
    """
    text = final_answer(text)
    try:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(text, text.index("{"))[0]
        yes = {key: str(value).strip().lower() in ("yes", "true") for key, value in found.items()}
        return {key.strip().replace(" ", "_"): value for key, value in yes.items()}
    except ValueError as error:
        raise DataError(f"expected a JSON object of answers, got {text[:100]!r}") from error


def _inline(part: str, kind: str, data: bytes) -> dict[str, Any]:
    return {"type": part, part: {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probing:
        return probing.connect_ex(address) == 0


def _end_with_parent() -> None:
    """Let the kernel end this process when the one that started it ends, however that happens (Linux)."""
    _LIBC.prctl(1, signal.SIGTERM)
