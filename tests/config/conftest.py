"""A registry of its own for each test, with a small experiment and a few choices."""

import pytest

from cosmos_predict.config import default, registry
from cosmos_predict.config.lazy import LazyCall


def shrink(config, report):
    config.model.net.num_blocks = 1
    config.trainer.max_iter = 2
    config.model.load = None
    report.append("debug: no base checkpoint")


def demo():
    return {
        "job": {"project": "posttraining", "group": "demo", "name": "demo_2b"},
        "model": LazyCall("cosmos_predict.randomness.derive_seed")(
            net={"num_blocks": 28, "crossattn_norm": False, "ids": [1, 2]}, load="base.pt", frames={0: 0.5, 1: 0.5}
        ),
        "optimizer": LazyCall("torch.optim.AdamW")(lr=2**-14.5, fused=True),
        "scheduler": {"_target_": "collections.Counter", "cycle": "${trainer.max_iter}"},
        "dataloader_train": {"_target_": "torch.utils.data.DataLoader", "num_workers": 8, "batch_size": 1},
        "trainer": {"max_iter": 1000, "callbacks": {"progress_bar": {"every": 10}}},
        "checkpoint": {"save_iter": 500},
    }


@pytest.fixture(autouse=True)
def demo_registry(monkeypatch):
    monkeypatch.setattr(registry, "_experiments", {})
    groups = {"callbacks": registry.Group("trainer.callbacks")}
    monkeypatch.setattr(registry, "_groups", groups)
    monkeypatch.setattr(registry, "load_experiments", lambda: None)
    registry.register_group("optimizer", "optimizer", keep=("lr",))
    registry.register_choice("optimizer", "adamw", LazyCall("torch.optim.AdamW")(lr=1e-4, fused=True))
    registry.register_choice("optimizer", "sgd", lambda: LazyCall("torch.optim.SGD")(lr=0.1, momentum=0.9))
    for layout in default.CHECKPOINT_TYPES:
        registry.register_choice("checkpoint", layout, {"type": layout})
    registry.register_choice("callbacks", "speed", {"speed": {"every": 3}})
    registry.register_choice("callbacks", "ema", {"ema": {"s": 0.1}})
    registry.register_experiment("demo_video2world", demo, summary="a small one", debug=shrink)
    registry.register_experiment("bare", lambda: {"trainer": {"max_iter": 7}})
