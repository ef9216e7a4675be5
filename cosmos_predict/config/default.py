"""The default config: `--config cosmos_predict/config/default.py`. An experiment goes on top of it."""

from cosmos_predict.config.registry import register_choice
from cosmos_predict.config.schema import CHECKPOINT_TYPES, Config, JobConfig

for _layout in CHECKPOINT_TYPES:
    register_choice("checkpoint", _layout, {"type": _layout})


def make_config() -> Config:
    """A config without a model; its run is named by the time, under the group `debug`."""
    return Config(job=JobConfig(project="cosmos_predict", group="debug", name="${now:%Y-%m-%d_%H-%M-%S}"))
