"""`debug=true`: the same experiment small enough for any machine. Works on config trees; imports no torch."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

DEBUG_LATENT_CHANNELS = 16
DEBUG_HEADS = 8


def shrink(config: DictConfig, report: list[str]) -> None:
    """Shrink network, frames, size and steps in place; weight-free tokenizer and text encoder; no base checkpoint.

    The dataset stays; `report` gets a line for what it reads.
    """
    config.job.name = f"{config.job.name}_debug"  # never in the folder of a real run
    pipe = config.model.config.pipe_config
    net = pipe.net
    net.update({"model_channels": DEBUG_HEADS * 16, "num_blocks": 1, "num_heads": DEBUG_HEADS, "adaln_lora_dim": 8})
    channels = [[name, DEBUG_LATENT_CHANNELS if name == "latent" else size] for name, size in net.input_channels]
    net.update({"input_channels": channels, "out_channels": DEBUG_LATENT_CHANNELS, "attention_backend": "sdpa"})
    OmegaConf.update(pipe.tokenizer, "name", "dct")
    pipe.tokenizer.path = ""
    pipe.tokenizer.options = {"channels": DEBUG_LATENT_CHANNELS}
    pipe.text_encoder, pipe.state_t = "tiny", None
    config.model.config.model_manager_config.dit_path = ""
    config.checkpoint.load_path = ""
    for name in ("dataloader_train", "dataloader_val"):
        loader = config.get(name)
        if loader is None or loader.get("dataset") is None:
            continue
        loader.update({"batch_size": 1, "num_workers": 0})
        if loader.dataset.get("num_frames", 1) > 1:
            loader.dataset.num_frames = 5
        loader.dataset.video_size = [48, 64]
        if "dataset_dir" in loader.dataset:
            report.append(f"debug: {name} still reads {loader.dataset.dataset_dir} (data=synthetic replaces it)")
    config.trainer.update(
        {
            "max_iter": min(config.trainer.max_iter, 2),
            "logging_iter": 1,
            "global_batch_size": None,
            "grad_accum_iter": 1,
        }
    )
    config.trainer.compute_dtype = "float32"
    config.model.config.fsdp_shard_size = 1
    config.model_parallel.update({"tensor_model_parallel_size": 1, "context_parallel_size": 1})
