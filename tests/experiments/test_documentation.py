"""What the guides tell a reader to type: experiments that exist, overrides that compose, links that lead somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from cosmos_predict.config.compose import compose
from cosmos_predict.config.nemo_keys import KEYS
from cosmos_predict.config.registry import list_experiments

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SECTIONS = ("job", "model", "optimizer", "scheduler", "dataloader_train", "dataloader_val", "trainer", "model_parallel")
OVERRIDE = re.compile(
    rf"^(?:(?:{'|'.join(SECTIONS)}|checkpoint)\.[\w.]+|model|data|val|text|optimizer|scheduler|callbacks|debug)=\S"
)
GUIDES = {  # and how many overrides each tells at least
    "configuration.md": 5,
    "parallelism.md": 5,
    "post_training_video2world.md": 5,
    "post_training_text2world.md": 5,
    "post_training_video2world_predict1.md": 1,
    "instruction_control.md": 5,
    "coming_from_nemo.md": 5,
    "data_preparation.md": 5,
    "data_formats.md": 10,
    "multi_node.md": 0,
    "curation.md": 1,
    "inference.md": 1,
    "quickstart.md": 1,
    "architecture.md": 0,
}


def expand(name: str) -> list[str]:
    """`a_{b,c}_d` -> a_b_d, a_c_d."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(pieces) for pieces in itertools.product(*parts)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_experiments_that_are_named_exist(page: Path) -> None:
    known, text = {name for name, _ in list_experiments()}, page.read_text()
    named = re.findall(
        r"(?:experiment=|EXP=|--factory |^\| `)((?:predict[12]_|text2world_|video2world_|cosmos_(?!predict))[\w{},]+|tiny_\w+)",
        text,
        re.MULTILINE,
    )
    assert [name for each in named for name in expand(each) if name not in known] == []


@pytest.mark.parametrize("name", GUIDES)
def test_overrides_that_are_told_compose(name: str) -> None:
    text = (REPOSITORY / "docs" / name).read_text()
    fenced = "".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)).splitlines()
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    spans += [line for line in text.splitlines() if line.startswith("    ") or line in fenced]
    told = [word for span in spans if "=" in span for word in words(span) if is_override(word)]
    assert len(told) >= GUIDES[name]
    for override in told:
        if not re.search(r"=(?:[A-Z]+|[a-z])?$|=\.\.\.|\.\.\.$|\)$", override):  # placeholders
            experiment = "predict2_video2world_training_2b_cosmos_nemo_assets"
            extra = ["val=video_folder"] if override.startswith("dataloader_val.") else []
            extra += ["data=latent_cache"] if "cache_dir" in override else []
            extra += ["optimizer=adamw_bf16"] if "optimizer.moments" in override else []
            compose([f"experiment={experiment}", *extra, override], report=[])


def is_override(word: str) -> bool:
    return OVERRIDE.match(word) is not None or word.partition("=")[0] in KEYS


def words(span: str) -> list[str]:
    try:
        return shlex.split(span.removesuffix("\\"), comments=True)  # a command that goes on
    except ValueError:
        return []


@pytest.mark.parametrize("name", GUIDES)
def test_links_lead_somewhere(name: str) -> None:
    page = REPOSITORY / "docs" / name
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
