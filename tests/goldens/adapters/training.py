"""Golden cases of area training: schedules, EMA, AdamW, clipping, LoRA, context parallel."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cosmos_predict.networks.lora import inject_lora, lora_layers
from cosmos_predict.training import schedulers
from cosmos_predict.training.ema import PowerEMA, power_ema_beta, power_ema_exponent
from cosmos_predict.training.grad_clip import clip_gradients
from cosmos_predict.training.optimizers import adamw
from tests.goldens.run_case import Case, adapter
from tests.parallel.ranks import check, run_ranks


@adapter("training", "lr_schedule")
def lr_schedule(case: Case) -> dict[str, Tensor]:
    config = dict(case.config)
    base_lr = config.pop("base_lr")
    schedule = getattr(schedulers, config.pop("scheduler"))(**config)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base_lr)
    driver = schedulers.lr_scheduler(optimizer, schedule)
    used = []
    for _ in range(case.call["updates"]):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        driver.step()
    multipliers = [schedule(n) for n in case.inputs["n"].tolist()]
    return {"f": torch.tensor(multipliers, dtype=torch.float64), "lr_used": torch.tensor(used, dtype=torch.float64)}


@adapter("training", "ema_beta")
def ema_beta(case: Case) -> dict[str, Tensor]:
    inputs = {name: tensor.tolist() for name, tensor in case.inputs.items()}
    gammas = [power_ema_exponent(s) for s in inputs["s"]]
    betas = [
        [[power_ema_beta(n, gamma, shift) for n in inputs["iteration"]] for shift in inputs["iteration_shift"]]
        for gamma in gammas
    ]
    return {"gamma": torch.tensor(gammas, dtype=torch.float64), "beta": torch.tensor(betas, dtype=torch.float64)}


@adapter("training", "ema_trajectory")
def ema_trajectory(case: Case) -> dict[str, Tensor]:
    config = case.config
    start = {name[5:]: tensor for name, tensor in case.inputs.items() if name.startswith("ema0.")}
    weights = {name: case.inputs[f"param.{name}"] for name in start}
    ema = PowerEMA(start, config["s"], config["iteration_shift"])
    betas, rows = [], {name: [] for name in start}
    for update in range(config["updates"]):
        betas.append(
            ema.update({name: rows[update] for name, rows in weights.items()}, config["first_iteration"] + update)
        )
        for name, shadow in ema.state_dict().items():
            rows[name].append(shadow.clone())
    return {
        "beta": torch.tensor(betas, dtype=torch.float64),
        **{f"ema.{name}": torch.stack(r) for name, r in rows.items()},
    }


@adapter("training", "adamw")
def adamw_steps(case: Case) -> dict[str, Tensor]:
    config = case.config
    names = list(case.spec["keys"])
    dtype = getattr(torch, config["param_dtype"])
    parameters = {name: nn.Parameter(case.inputs[f"param0.{name}"].to(dtype)) for name in names}
    model = nn.Module()
    for index, parameter in enumerate(parameters.values()):
        model.register_parameter(str(index), parameter)
    options = {name: config[name] for name in ("lr", "betas", "eps", "weight_decay", "master_weights")}
    optimizer = adamw(model, **options)
    masters = dict(zip(map(id, getattr(optimizer, "parameters", [])), getattr(optimizer, "masters", []), strict=True))
    rows: dict[str, list[Tensor]] = {}
    for update, lr in enumerate(case.inputs["lr"].tolist()):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in parameters.items():
            parameter.grad = case.inputs[f"grad.{name}"][update]
        optimizer.step()
        for name, parameter in parameters.items():
            master = masters.get(id(parameter), parameter)
            state = optimizer.state[master]
            values = {
                "param": parameter,
                "master": master,
                "exp_avg": state["exp_avg"],
                "exp_avg_sq": state["exp_avg_sq"],
            }
            for kind, value in values.items():
                rows.setdefault(f"{kind}.{name}", []).append(value.detach().clone())
    return {name: torch.stack(values) for name, values in rows.items()}


@adapter("training", "grad_clip")
def grad_clip(case: Case) -> dict[str, Tensor]:
    config = case.config
    parameters = {name: nn.Parameter(torch.zeros_like(gradient)) for name, gradient in case.inputs.items()}
    for name, parameter in parameters.items():
        parameter.grad = case.inputs[name].clone()
    result = clip_gradients(parameters.values(), config["clip_norm"], config["norm_type"], config["force_finite"])
    return {"total_norm": torch.tensor(result.total_norm), **{name: p.grad for name, p in parameters.items()}}


@adapter("training", "lora")
def lora(case: Case) -> dict[str, Tensor]:
    config, weights = case.config, case.weights()
    network = nn.Module()
    for key in case.call["base_keys_before_injection"]:
        module, _, _ = key.rpartition(".")
        shape = weights.get(key, weights.get(f"{module}.base_layer.weight")).shape
        add_module(network, module, nn.Linear(shape[1], shape[0], bias=False))
    inject_lora(network, config["lora_rank"], config["lora_alpha"], config["lora_target_modules"])
    network.load_state_dict(weights)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable == set(case.call["trainable_keys"]), trainable ^ set(case.call["trainable_keys"])
    layers = dict(lora_layers(network))
    outputs = {name: network.get_submodule(name)(x) for name, x in case.inputs.items()}
    return outputs | {f"merged.{name}": layers[name].merged_weight() for name in case.inputs if name in layers}


def add_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register `module` at a dotted name, with plain containers on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(last, module)


@adapter("training", "context_parallel")
def context_parallel(case: Case) -> dict[str, Tensor]:
    size = case.config["cp_size"]
    with tempfile.TemporaryDirectory() as folder:
        save_file(case.inputs, Path(folder) / "case.safetensors")
        check(run_ranks("tests.parallel.cp_program", f"{folder}/case.safetensors", folder, ranks=size))
        parts = [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(size)]
    return {f"{name}.rank{rank}": tensor for rank, part in enumerate(parts) for name, tensor in part.items()}
