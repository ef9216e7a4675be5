"""Loss reductions, the log-variance term, and the published numbers of both generations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cosmos_predict.diffusion.loss import FourierFeatures, LogVariance, weighted_mse
from cosmos_predict.diffusion.parameterization import EDM, RectifiedFlow, add_noise, predicted_noise
from cosmos_predict.errors import ConfigError
from tests.goldens.run_case import Case

GOLDENS = Path(__file__).parents[1] / "goldens" / "cases"


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x0, prediction = torch.randn(2, 2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    return x0, prediction


def test_reductions() -> None:
    x0, prediction = pair()
    weight = torch.tensor([2.0, 0.5])
    elements = weight[:, None, None, None, None] * (x0 - prediction) ** 2
    size = x0[0].numel()
    losses = {
        reduce: weighted_mse(x0, prediction, weight, reduce=reduce, scale=10.0)
        for reduce in ("mean", "sum", "sum_channels")
    }
    torch.testing.assert_close(losses["mean"].loss, 10 * elements.mean())
    torch.testing.assert_close(losses["sum"].loss, 10 * elements.mean() * size)
    torch.testing.assert_close(losses["sum_channels"].loss, 10 * elements.mean() * x0.shape[1])
    for loss in losses.values():  # what is logged does not depend on reduction and scale
        torch.testing.assert_close(loss.edm_loss, elements.mean())
        torch.testing.assert_close(loss.edm_loss_per_frame, elements.mean(dim=(1, 3, 4)))
        torch.testing.assert_close(loss.mse_loss, ((x0 - prediction) ** 2).mean())


def test_logvar_term_is_counted_once_per_element() -> None:
    x0, prediction = pair()
    weight, u = torch.tensor([2.0, 0.5]), torch.tensor([[0.3], [-0.2]])
    elements = weight[:, None, None, None, None] * (x0 - prediction) ** 2
    elements = elements * torch.exp(-u)[:, :, None, None, None] + u[:, :, None, None, None]
    torch.testing.assert_close(weighted_mse(x0, prediction, weight, logvar=u).loss, elements.mean())
    total = elements.sum() / 2
    torch.testing.assert_close(weighted_mse(x0, prediction, weight, logvar=u, reduce="sum").loss, total)


def test_best_logvar_is_the_log_of_the_mean_error() -> None:
    x0, prediction = pair()
    weight = torch.ones(2)
    u = ((x0 - prediction) ** 2).mean(dim=(1, 2, 3, 4)).log().requires_grad_()
    weighted_mse(x0, prediction, weight, logvar=u).loss.backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad, torch.zeros(2), rtol=0, atol=1e-6)


def test_only_loss_carries_a_gradient_and_given_frames_none() -> None:
    x0, prediction = pair()
    prediction = prediction.clone().requires_grad_()
    mask = torch.zeros(2, 1, 4, 1, 1)
    mask[:, :, :1] = 1
    loss = weighted_mse(x0, mask * x0 + (1 - mask) * prediction, torch.ones(2, 4))
    assert not (loss.edm_loss.requires_grad or loss.edm_loss_per_frame.requires_grad or loss.mse_loss.requires_grad)
    assert loss.edm_loss_per_frame[:, 0].abs().max() == 0
    loss.loss.backward()
    assert prediction.grad is not None and prediction.grad[:, :, 0].abs().max() == 0
    assert prediction.grad[:, :, 1:].abs().min() > 0
    torch.testing.assert_close(loss.loss, ((x0 - prediction) ** 2)[:, :, 1:].sum() / x0.numel())


def test_dtype_is_float32_at_least() -> None:
    x0, prediction = pair()
    assert weighted_mse(x0.bfloat16(), prediction.bfloat16(), torch.ones(2)).loss.dtype == torch.float32
    assert weighted_mse(x0.double(), prediction, torch.ones(2).double()).loss.dtype == torch.float64


def test_bad_values_name_themselves() -> None:
    x0, prediction = pair()
    with pytest.raises(ConfigError, match="loss_reduce is 'max'; expected 'mean', 'sum' or 'sum_channels'"):
        weighted_mse(x0, prediction, torch.ones(2), reduce="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"prediction of shape \(2, 3, 3, 5, 6\); expected the same"):
        weighted_mse(x0, prediction[:, :, 1:], torch.ones(2))


def test_logvar_head_has_the_published_keys_and_computes_in_float32() -> None:
    model = nn.Module()
    model.logvar = LogVariance()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {"logvar.0.freqs": (128,), "logvar.0.phases": (128,), "logvar.1.weight": (1, 128)}
    assert [name for name, _ in model.named_parameters()] == ["logvar.1.weight"]
    head = LogVariance(16).bfloat16()
    value = torch.tensor([1.3, -0.7])
    freqs, phases = head.get_buffer("0.freqs").float(), head.get_buffer("0.phases").float()
    expected = math.sqrt(2) * torch.cos(value[:, None] * freqs + phases)
    expected = expected @ head.get_parameter("1.weight").float().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u = head(value)
    assert u.dtype == torch.float32
    torch.testing.assert_close(u, expected)
    assert head(value[:, None]).shape == (2, 1) and head(torch.zeros(2, 5)).shape == (2, 5)
    torch.testing.assert_close(head(value[:, None]), head(value))


def test_fourier_features_have_unit_variance_and_can_be_redrawn() -> None:
    features = FourierFeatures(4096)
    output = features(torch.tensor([0.3]))
    assert abs(output.var().item() - 1) < 0.1 and abs(output.mean().item()) < 0.1
    before = features.freqs.clone()
    features.reset_parameters()
    assert not torch.equal(before, features.freqs) and 0 <= features.phases.min() <= features.phases.max() <= 7


def outputs_of(case: Case) -> dict[str, torch.Tensor]:
    tensors = load_file(case.folder / "data.safetensors")
    return {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("out.")}


@pytest.mark.parametrize(
    "name",
    [
        "edm_loss_text2world",
        "edm_loss_video2world",
        "edm_loss_video2world_all_region",
        "edm_loss_video2world_dropped",
        "edm_loss_multiview_video2world",
    ],
)
def test_predict1_published_losses_follow_from_their_predictions(name: str) -> None:
    """Everything of the loss that stands after the network, from the golden's own x0_pred."""
    case = Case.read(GOLDENS / "predict1" / name)
    expected, inputs, config = outputs_of(case), case.inputs, case.config
    edm = EDM(config["sigma_data"])
    weights = case.weights()
    head = LogVariance(weights["logvar.0.freqs"].numel())
    head.load_state_dict({key[7:]: value for key, value in weights.items() if key.startswith("logvar.")})
    sigma = inputs["sigma"]
    u = head(edm.scaling(sigma).c_noise)
    loss = weighted_mse(
        inputs["x0"],
        expected["x0_pred"],
        edm.loss_weight(sigma),
        logvar=u if config["loss_add_logvar"] else None,
        reduce=config["loss_reduce"],
        scale=config.get("loss_scale", 1.0),
    )
    torch.testing.assert_close(u, expected["logvar"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.loss, expected["loss"].squeeze(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.edm_loss, expected["edm_loss_mean"].squeeze(), rtol=1e-4, atol=1e-5)
    if "mse_mean" in expected:
        torch.testing.assert_close(loss.mse_loss, expected["mse_mean"].squeeze(), rtol=1e-4, atol=1e-5)
    if "xt" in expected:
        torch.testing.assert_close(add_noise(inputs["x0"], inputs["epsilon"], sigma), expected["xt"])


@pytest.mark.parametrize("name", ["train_image", "train_video2world", "train_video2world_dropped"])
def test_predict2_published_losses_follow_from_their_predictions(name: str) -> None:
    case = Case.read(GOLDENS / "predict2" / name)
    expected, inputs = outputs_of(case), case.inputs
    flow, sigma = RectifiedFlow(), inputs["sigma"]
    weight = flow.loss_weight(sigma)
    loss = weighted_mse(inputs["x0"], expected["x0_pred"], weight, scale=case.config["loss_scale"])
    torch.testing.assert_close(weight, expected["weights_per_sigma"])
    for field in ("loss", "edm_loss", "edm_loss_per_frame", "mse_loss"):
        torch.testing.assert_close(getattr(loss, field), expected[field], rtol=1e-4, atol=1e-5)
    x = add_noise(inputs["x0"], inputs["epsilon"], sigma)
    noise = predicted_noise(x, expected["x0_pred"], sigma)
    torch.testing.assert_close(noise, expected["eps_pred"], rtol=1e-4, atol=1e-4)
