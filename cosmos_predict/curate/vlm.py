"""Models that look at frames and answer in words: any OpenAI-compatible endpoint, or weights here by vLLM or transformers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from PIL import Image

from cosmos_predict.curate.endpoint import CONTINUE, Answer, Endpoint
from cosmos_predict.curate.media import read_parts
from cosmos_predict.curate.spans import caption_windows, shown_frames, shown_size
from cosmos_predict.curate.stage import Clip, Resources, Window
from cosmos_predict.data.video_reader import probe
from cosmos_predict.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    UnavailableError,
)

Options = Mapping[str, Any]
RESTARTS = 5  # of a server that is ours, one after the other
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


class Server(Endpoint):
    """A folder of weights behind `vllm serve` on this machine, started by the first `open` and ended by the last `close`."""

    def __init__(self, path: Path, workers: int = 8, gpus: int = 1, patience: float = 600.0) -> None:
        super().__init__("", str(path), "video", workers=workers, patience=patience)
        self.gpus, self.users, self.process, self.each = gpus, 0, None, workers
        self.together = [self]  # servers of the run, which `share_devices` makes known to each other
        self.key, self.extra = "", {"top_p": 0.001, "repetition_penalty": 1.05, "min_tokens": 16}

    def open(self, device: str = "cpu") -> None:
        if self.process is None:
            for server in self.together:  # before the first one has loaded for minutes
                require_weights(Path(server.model))
            self.lost, self.turn, self.starting = "", threading.Lock(), threading.Lock()
            self._start()
        self.users += 1

    def _start(self) -> None:
        if (program := shutil.which("vllm")) is None:
            raise MissingDependencyError("no program vllm: pip install vllm, or --captioning-backend transformers")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        self.url = f"http://127.0.0.1:{address[1]}/v1"
        command = [program, "serve", self.model, "--host", address[0], "--port", str(address[1])]
        share, devices, copies = self._place()
        command += ["--max-model-len", "32768", "--gpu-memory-utilization", share]
        command += ["--tensor-parallel-size", str(self.gpus), "--media-io-kwargs", '{"video": {"num_frames": -1}}']
        command += ["--data-parallel-size", str(copies)] if copies > 1 else []
        self.workers = self.each * copies
        with tempfile.TemporaryFile() as said:
            own: dict[str, Any] = {"start_new_session": True, "preexec_fn": end_with_parent}
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **devices}, **own)
            while not _listens(address) and not self.lost:
                if self.process.poll() is not None:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise UnavailableError(
                        f"vllm serve {self.model} ended with status {self.process.returncode}: {last}"
                    )
                time.sleep(0.2)

    def _place(self) -> tuple[str, dict[str, str], int]:
        """Return the part of a GPU's memory that it takes, the variables that say which GPUs it sees, and its copies there.

        Each of several servers has GPUs of its own where there are enough; those on the same ones share the memory.
        """
        number, count, devices = self.together.index(self), len(self.together), visible_devices()
        groups = len(devices) // self.gpus or 1  # each of them for one copy
        places = range(number % groups, groups, count) or range(1)
        mine = [name for place in places for name in devices[place * self.gpus : (place + 1) * self.gpus]]
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if count > 1 < groups else {}
        return f"{int(85 / len(range(number % groups, count, groups))) / 100:g}", seen, len(places)

    def _silent(self) -> str:
        with self.starting:
            if self.lost or self.process is None or self.process.poll() is None:
                return self.lost or super()._silent()
            self.deaths += 1
            if self.deaths > RESTARTS:
                self.lost = f"vllm serve {self.model} died {self.deaths} times without an answer; {CONTINUE}"
                return self.lost
            logger.warning(f"vllm serve {self.model} ended with status {self.process.returncode}; it is started again")
            try:
                self._start()
            except UnavailableError as error:
                self.lost = f"{error}; {CONTINUE}"
            self.woken = time.monotonic()
            return self.lost

    def close(self) -> None:
        self.users -= 1
        if self.process is not None and not self.users:
            with contextlib.suppress(ProcessLookupError):  # it has died
                os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()
            self.process = None


class Local:
    """A folder of weights in this process, by transformers, on one device. Answers are the likeliest words."""

    workers, gpus = 1, 1.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: Any = None

    def open(self, device: str = "cpu") -> None:
        """Load the weights, once."""
        if self.model is not None:
            return
        require_weights(self.path)
        import torch
        import transformers

        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        names = transformers.AutoConfig.from_pretrained(self.path).architectures or [""]
        kind = getattr(transformers, names[0], None)
        if kind is None:
            raise CheckpointError(f"{self.path}: config.json names no architecture of transformers, but {names}")
        self.model = kind.from_pretrained(self.path, dtype=dtype).eval().to(device)
        self.processor, self.lock = transformers.AutoProcessor.from_pretrained(self.path), threading.Lock()

    def close(self) -> None:
        """Leave the weights: another stage may use them."""

    def cease(self) -> None:
        """An answer in hand comes to its end."""

    def answer(self, prompt: str, frames: np.ndarray | None, fps: float, system: str, tokens: int) -> Answer:
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
            try:
                made = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, repetition_penalty=1.05)
            except RuntimeError as error:
                if "CUDA error" in str(error):  # nothing runs on the device any more, in this process
                    raise UnavailableError(f"{self.path}: {str(error).splitlines()[0]}; {CONTINUE}") from error
                raise
        words = made[0, inputs["input_ids"].shape[1] :]
        text = self.processor.decode(words, skip_special_tokens=True)
        return Answer(text, len(words) < tokens, inputs["input_ids"].shape[1], len(words))


Model = Endpoint | Local


def build_model(name: str, options: Options) -> Model:
    """Return a model by its published name; "openai" is the endpoint. `open` raises ConfigError where its weights are not."""
    workers = options["api_caption_batch_size"]
    if name == "openai":
        url = options["openai_base_url"] or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        tries, patience = options["openai_max_retries"], options["api_patience_s"]
        return Endpoint(url, options["openai_model"], options["openai_media"], tries, workers, patience)
    path = Path(options["model_weights_path"]) / prompts()["models"][name]
    if backend(options) == "vllm":
        return Server(path, workers, options["qwen_num_gpus_per_worker"], options["api_patience_s"])
    return Local(path)


def needed_by(models: Iterable[Any]) -> Resources:
    """Return what a stage needs for its models; servers find their GPUs themselves."""
    return Resources(gpus=max((model.gpus for model in models if isinstance(model, Local)), default=0.0))


def share_devices(models: Iterable[Any]) -> None:
    """Let servers that run at the same time share the GPUs of this machine."""
    servers = [*dict.fromkeys(model for model in models if isinstance(model, Server))]
    for server in servers:
        server.together = servers


def visible_devices() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    asked = [program, "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    return found.stdout.split() if found.returncode == 0 else []


def backend(options: Options) -> str:
    """Return what runs models here: `captioning_backend`, where "auto" means vllm if that is installed."""
    asked = options["captioning_backend"]
    return asked if asked != "auto" else "vllm" if shutil.which("vllm") else "transformers"


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


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probing:
        return probing.connect_ex(address) == 0


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it ends, however that happens (Linux)."""
    _LIBC.prctl(1, signal.SIGTERM)
