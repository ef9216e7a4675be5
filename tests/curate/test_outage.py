"""A server that goes away: waited for, then the run ends and goes on later; what one request alone meets is its own failure."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cosmos_predict.curate import endpoint
from cosmos_predict.curate.endpoint import Endpoint
from cosmos_predict.curate.revise import recaption
from cosmos_predict.curate.storage import Store
from cosmos_predict.curate.vlm import Server
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import UnavailableError
from tests.curate.chat_server import ChatServer, serving
from tests.curate.footage import FPS, film, make_set
from tests.curate.running import REPOSITORY, finished, options_of, run_split, tree


def ask(model: Endpoint, prompt: str) -> str:
    return model.answer(prompt, None, 0.0, "", 100).text


def text_of(request: dict[str, Any]) -> str:
    return request["messages"][-1]["content"][-1]["text"]


def end(server: ChatServer) -> None:
    """Have a server go away, from one of its own threads."""
    threading.Thread(target=lambda: (server.shutdown(), server.server_close())).start()


def test_a_server_that_comes_back_is_waited_for() -> None:
    with serving(lambda request: "first") as server:
        model = Endpoint(server.url, "m", retries=0, patience=30.0)
        model.open()
        assert ask(model, "?") == "first"
        port = server.server_address[1]
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, model, "?") for _ in range(3)]
        time.sleep(0.5)
        assert not any(future.done() for future in waiting)
        with ChatServer(lambda request: "again", port) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            assert [future.result(20) for future in waiting] == ["again"] * 3
            server.shutdown()


def test_a_server_that_stays_away_ends_the_work() -> None:
    with serving(lambda request: "first") as server:
        model = Endpoint(server.url, "m", retries=0, patience=1.5)
        model.open()
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, model, "?") for _ in range(3)]
        message = r"/chat/completions: no answer for \d+ s \(.*refused.*\); the run ends here, the same command goes on"
        for future in waiting:
            with pytest.raises(UnavailableError, match=message):
                future.result(20)
        assert 1.5 < time.monotonic() - started < 8
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=message):  # at once
        ask(model, "?")
    assert time.monotonic() - started < 0.5
    with pytest.raises(ConnectionError, match=r"given up after 1 tries .*is --openai-base-url right"):
        Endpoint(model.url, "m", retries=0, patience=100.0).open()  # no patience at the start


def test_whoever_waits_can_be_stopped() -> None:
    with serving(lambda request: "first") as server:
        model = Endpoint(server.url, "m", retries=5, patience=100.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, model, "?")
        time.sleep(0.2)
        model.cease()
        with pytest.raises(UnavailableError, match="the run ends"):
            waiting.result(3)


def test_one_request_that_fails_is_no_outage() -> None:
    def reply(request: dict[str, Any]) -> str:
        if "bad" in text_of(request):
            server.failures.append(failure)
            raise ConnectionResetError  # hangs up
        return "fine"

    with serving(reply) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        model = Endpoint(server.url, "m", retries=0, patience=100.0)
        model.open()
        started = time.monotonic()
        failure = 500
        with pytest.raises(ConnectionError, match="given up after [12] tries") as caught:
            ask(model, "bad")
        assert not isinstance(caught.value, UnavailableError) and time.monotonic() - started < 10
        server.failures.clear()
        assert ask(model, "good") == "fine"


def test_when_every_request_fails_for_long_the_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MANY", 3)
    with serving(lambda request: "fine") as server:
        model = Endpoint(server.url, "m", retries=0, patience=0.5)
        model.open()
        server.failures = [404] * 3
        for _ in range(3):
            with pytest.raises(ConnectionError, match="HTTP status 404"):
                ask(model, "?")
        time.sleep(0.6)
        assert ask(model, "?") == "fine"  # which ends the row
        server.failures = [404] * 9
        for _ in range(3):
            with pytest.raises(ConnectionError, match="HTTP status 404") as caught:
                ask(model, "?")
            assert not isinstance(caught.value, UnavailableError)
        time.sleep(0.6)
        with pytest.raises(UnavailableError, match=r"every request has failed for 1 s, the last with HTTP status 404"):
            ask(model, "?")


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `vllm` in the path whose `serve` is the test server; it dies when it is asked of poison."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    log = tmp_path / "starts"
    program.write_text(
        f'#!/bin/sh\necho start >> {log}\ncd {REPOSITORY}\nexec {sys.executable} -m tests.curate.chat_server "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


@pytest.mark.slow
def test_vllm_is_started_again_and_who_kills_it_fails(vllm: Path, tmp_path: Path) -> None:
    model = Server(tmp_path, patience=60.0)
    model.retries = 0
    model.open()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, model, prompt) for prompt in ("a", "poison", "b", "c")]
        with pytest.raises(
            ConnectionError, match=r"the server died 3 times while it was asked this, the last times this"
        ):
            asked.pop(1).result(60)
        assert all(f"{tmp_path} serve" in future.result(60) for future in asked)
    model.close()
    assert 4 <= len(vllm.read_text().split()) <= 5  # one of its deaths may have gone unseen, in a pause


@pytest.mark.slow
def test_vllm_that_dies_of_everything_ends_the_work(
    vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_predict.curate.vlm.RESTARTS", 1)
    model = Server(tmp_path, patience=60.0)
    model.retries = 0
    model.open()
    with pytest.raises(UnavailableError, match=r"vllm serve .* died 2 times without an answer; the run ends here"):
        ask(model, "poison")
    model.close()


@pytest.mark.slow
def test_a_split_goes_on_when_the_endpoint_is_back(tmp_path: Path) -> None:
    """No video is marked as failed, and the tree is the one of an undisturbed run."""
    write_video(tmp_path / "in" / "a.mp4", film([125, 125], seed=3), FPS)
    write_video(tmp_path / "in" / "b.mp4", film([125, 125], seed=4), FPS)
    flags = ["--captioning-algorithm", "openai", "--openai-model", "m", "--splitting-algorithm", "content"]
    flags += ["--openai-max-retries", "0", "--api-patience-s", "1", "--workers", "1", "--text-encoder", "none"]
    output = tmp_path / "out"

    def reply(request: dict[str, Any]) -> str:
        if len(server.requests) >= 2:
            end(server)
        return "A caption."

    with ChatServer(reply) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = server.url
        status, _, err = finished(tmp_path / "in", output, *flags, "--openai-base-url", url)
    assert status == 1 and "Traceback" not in err, err
    assert f"error: {url}/chat/completions: no answer for " in err and "the same command goes on where it was" in err
    records = [json.loads(path.read_text()) for path in (output / "processed_videos").rglob("*.json")]
    assert all(record["status"] == "done" for record in records) and len(records) < 2
    assert not list((output / ".work" / "in-hand").rglob("*.json"))  # nobody is suspected
    with serving(lambda request: "A caption.") as server:
        flags += ["--openai-base-url", server.url]
        assert run_split(tmp_path / "in", output, *flags)["num_clips_passed"] == 4
        run_split(tmp_path / "in", tmp_path / "whole", *flags)
    assert tree(output) == tree(tmp_path / "whole")
    given = {"captioning_algorithm": "openai", "captioning_prompt_text": "Anew."}
    before = tree(output)

    def gone(request: dict[str, Any]) -> None:
        end(server)
        raise ConnectionResetError  # no answer, to as many as ask before it is gone

    with serving(gone) as server:
        run = {**options_of(*flags[:-1], server.url), "executor": "threads"}
        with pytest.raises(UnavailableError, match="no answer for"):
            recaption(Store(output), run, given, True)
    assert tree(output) == before


@pytest.mark.slow
def test_ray_ends_when_the_endpoint_is_gone(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    make_set(tmp_path / "in", 1)
    flags = ["--captioning-algorithm", "openai", "--openai-model", "m", "--splitting-algorithm", "content"]
    flags += ["--openai-max-retries", "0", "--api-patience-s", "1", "--workers", "1", "--executor", "ray"]
    with serving(lambda request: end(server)) as server:
        status, _, err = finished(tmp_path / "in", tmp_path / "out", *flags, "--openai-base-url", server.url)
    assert status == 1 and "Traceback" not in err and "no answer for" in err and "goes on where it was" in err, err
    assert not list((tmp_path / "out").rglob("processed_videos/**/*.json"))
