"""AdamW for less memory: bfloat16 weights without float32 masters, and moments in 8 bits.

Three ideas, all on plain tensors (the local shard of a DTensor), a bounded piece of one parameter at a time:

- The update is computed in float32, then rounded up or down to bfloat16 with the probability that keeps its mean, so
  that changes below bfloat16's resolution add up instead of vanishing.
- Moments in 8 bits are small floats: sign (first moment alone), exponent and 3 bits of mantissa under one power-of-two
  scale per 256 neighbours of a row. They are rounded the same way: with rounding to nearest, a second moment that shrinks
  by 1 % a step would never leave its level. A power of two as scale leaves unchanged values on their level.
- Random bits are a hash of (seed, parameter's step, parameter's place in the optimizer, purpose, element), with the
  element counted in the whole parameter: the same on every device, and for replicated or row-sharded parameters at every
  world size. Other shardings count in their shard and add its offset to the key.

Blocks never cross rows, and FSDP shards rows, so codes and scales are sharded like their parameter: another world size
reads them without quantising anew. Tensor parallelism divides columns of some matrices: those where a block would be cut
(a part is no multiple of 256 columns) keep float32 moments.

Bytes per element of a matrix, without gradients: float32 weights 4 + 2.03 = 6.03 (8-bit moments); bfloat16 weights
2 + 8 = 10 (float32 moments), 2 + 4 = 6 (bfloat16), 2 + 2.03 = 4.03 (8 bits). AdamW in float32: 12; with masters: 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor, nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.parallel.shards import holds_rows, is_sharded, lay_like, own, part_of, shard_like
from cosmos_predict.randomness import derive_seed
from cosmos_predict.training.optimizers import parameter_groups

BLOCK = 256  # elements of a row under one scale
MIN_ROW = 64  # shorter rows (vectors, thin adapters) keep float32 moments: scales would outweigh the gain
CHUNK = {"cpu": 1 << 17}  # elements worked on at once: the caches of a CPU, launches and temporary memory of a GPU
CHUNK_ELSEWHERE = 1 << 23
MOMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.uint8}
NAMES = ("exp_avg", "exp_avg_sq")  # the first is signed, the second is not

_MANTISSA_SHIFT = 20  # float32's 23 bits of mantissa less the 3 that a code keeps
_OFFSET = 2.0**-15
# The bits, shifted, of the magnitude with code 0, by signed; without sign it makes 255 the code of 1.
_LOWEST = {True: (127 - 15) << 3, False: (127 << 3) - 255}


@configurable
def adamw8bit(
    model: nn.Module,
    lr: float = 1e-4,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    decay_vectors: bool = True,
    seed: int = 0,
) -> LowMemoryAdamW:
    """Return AdamW with 8-bit moments over the trainable parameters of `model` (float32, or bfloat16 rounded as in
    `adamw_bf16`). `seed` names the sequence of random bits that round; a resumed run must keep it.
    """
    groups = parameter_groups(model.parameters(), weight_decay, decay_vectors)
    return LowMemoryAdamW(groups, lr=lr, betas=betas, eps=eps, seed=seed)


@configurable
def adamw_bf16(
    model: nn.Module,
    lr: float = 1e-4,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    decay_vectors: bool = True,
    moments: str = "fp32",
    seed: int = 0,
) -> LowMemoryAdamW:
    """Return AdamW with stochastic rounding for a `model` whose weights are stored in bfloat16 (float32 parameters among
    them are updated without rounding). moments: "fp32", "bf16" or "8bit".

    Gradients have the weights' precision: those of several micro-batches add up in bfloat16, since FSDP casts what it has
    reduced (in float32) to the parameter's dtype. What that rounds off grows with `grad_accum_iter`; few, large
    micro-batches lose the least, and `adamw8bit` on float32 weights adds up in float32.

    Raises ConfigError where no trainable parameter is bfloat16: the optimizer casts no weights.
    """
    groups = parameter_groups(model.parameters(), weight_decay, decay_vectors)
    found = {parameter.dtype for group in groups for parameter in group["params"]}
    if torch.bfloat16 not in found:
        raise ConfigError(
            f"adamw_bf16 needs trainable weights in bfloat16, this model has {', '.join(sorted(map(str, found)))}; "
            "set model.dtype=bfloat16 (optimizer=adamw_bf16 on the command line does), or take optimizer=adamw8bit "
            "(float32 weights) or optimizer=adamw"
        )
    return LowMemoryAdamW(groups, lr=lr, betas=betas, eps=eps, moments=moments, seed=seed)


class LowMemoryAdamW(torch.optim.Optimizer):
    """AdamW (eps outside the square root after bias correction, decoupled decay) as the module describes.

    State of a parameter of shape (R, ...): `step` (int64 scalar) and for each of `exp_avg`, `exp_avg_sq` either a tensor
    of its shape, or `<name>_codes` (its shape, uint8) and `<name>_scales` (R, ceil(K / 256)), float32, with K elements a
    row. They are DTensors with the parameter's placements where that is one.

    Args:
        params: parameters or groups, float32 or bfloat16, on any mix of the two.
        moments: "fp32", "bf16" or "8bit"; under "8bit" rows of fewer than 64 elements and parameters sharded otherwise
            than by rows keep float32.
        seed: of the random bits. Not in the state dict: it belongs to the configuration.

    Raises ConfigError for other dtypes or moments, and options out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: Iterable[float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        moments: str = "8bit",
        seed: int = 0,
    ) -> None:
        lr, betas, eps = float(lr), tuple(betas), float(eps)
        if moments not in MOMENTS:
            raise ConfigError(f"moments={moments!r} is not known; choose one of {', '.join(MOMENTS)}")
        if lr < 0 or eps < 0 or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"lr={lr} and eps={eps} must not be negative, betas={betas} two numbers in [0, 1)")
        self.moments, self.seed = moments, int(seed)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": float(weight_decay)})
        for _, parameter in self._parameters():
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ConfigError(
                    f"a parameter of shape {tuple(parameter.shape)} is {parameter.dtype}; "
                    "these optimizers take float32 and bfloat16 weights"
                )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; the others keep weights, moments and step."""
        for index, (group, parameter) in enumerate(self._parameters()):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.int64)
                state.update(self._empty_moments(parameter))
            state["step"] += 1
            self._update(index, parameter, parameter.grad, state, group)

    def _parameters(self) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
        return ((group, parameter) for group in self.param_groups for parameter in group["params"])

    def _update(
        self, index: int, parameter: nn.Parameter, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        local, grad = own(parameter), own(lay_like(grad, parameter))
        contiguous = local.contiguous()  # a copy of a weight in another memory format, written back below
        weights, grads = _rows(contiguous), _rows(grad.contiguous())
        stored = {name: _rows(own(value)) for name, value in state.items() if name != "step"}
        step, (rows, columns) = int(state["step"]), weights.shape
        first_row, key = self._place(index, parameter)
        keys = {purpose: derive_seed(self.seed, step, f"{key} {purpose}") for purpose in ("weight", *NAMES)}
        chunk = max(1, CHUNK.get(local.device.type, CHUNK_ELSEWHERE) // max(columns, 1))
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            here = {name: value[part] for name, value in stored.items()}
            element, weight = (first_row + start) * columns, weights[part]
            moments = [_read(here, name) for name in NAMES]
            updated = weight.float()
            _adamw(updated, grads[part].float(), moments[0], moments[1], step, group)
            for name, value in zip(NAMES, moments, strict=True):
                _write(here, name, value, element, keys[name])
            if weight.dtype == torch.bfloat16:
                bits = random_bits(element, updated.numel(), keys["weight"], updated.device)
                weight.copy_(stochastic_round(updated, bits.view_as(updated)))
        if contiguous is not local:
            local.copy_(contiguous)

    def _place(self, index: int, parameter: Tensor) -> tuple[int, str]:
        """Return the number of the first local row in the whole parameter, and the name of its random sequence."""
        offset = [side.start for side in part_of(parameter) or ()]
        if not any(offset[1:]) and holds_rows(parameter):
            return offset[0] if offset else 0, str(index)
        return 0, f"{index} {offset}"

    def _empty_moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return zero moments of one parameter, in the form that this optimizer keeps."""
        short = parameter.ndim < 2 or math.prod(parameter.shape[1:]) < MIN_ROW
        coded = self.moments == "8bit" and not short and _holds_blocks(parameter)
        dtype = torch.float32 if self.moments == "8bit" and not coded else MOMENTS[self.moments]
        moments = {}
        for name in NAMES:
            zeros = torch.zeros_like(parameter.detach(), dtype=dtype, memory_format=torch.contiguous_format)
            moments |= {f"{name}_codes": zeros, f"{name}_scales": _zero_scales(parameter)} if coded else {name: zeros}
        return moments

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Load what `state_dict` gave; each tensor whole or as this rank's shard, plain or DTensor.

        Moments in another form (of torch's AdamW, or saved with other `moments`) are converted, and the log says so.
        Raises CheckpointError for missing moments or other shapes, ValueError for other groups.
        """
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        loaded: dict[Tensor, dict[str, Any]] = {}
        converted = 0
        for index, (number, (_, parameter)) in enumerate(zip(numbers, self._parameters(), strict=False)):
            if saved := state_dict["state"].get(number):
                step = torch.tensor(int(saved["step"]), dtype=torch.int64)
                loaded[parameter] = state = {"step": step, **self._empty_moments(parameter)}
                same = [self._load_moment(index, parameter, name, saved, state) for name in NAMES]
                converted += not all(same)
        # The base class, which also compares the groups, would cast codes and float32 moments to the parameter's dtype.
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(loaded)
        if converted:
            logger.warning("optimizer moments of {} parameters were converted to {}", converted, self.moments)

    def _load_moment(
        self, index: int, parameter: Tensor, name: str, saved: Mapping[str, Any], state: dict[str, Any]
    ) -> bool:
        """Fill one moment of `state` from `saved`; return whether it had the same form."""
        codes, scales = f"{name}_codes", f"{name}_scales"
        if name not in saved and not (codes in saved and scales in saved):
            raise CheckpointError(
                f"the saved optimizer state of parameter {index} has {sorted(saved)}, expected {name} or {codes} and {scales}"
            )
        present = [key for key in (name, codes, scales) if key in saved]
        wanted = [key for key in (name, codes, scales) if key in state]
        if scales in present and not _holds_blocks(parameter):
            raise CheckpointError(
                f"the saved 8-bit moments of parameter {index} are in blocks of {BLOCK} columns, which parts of "
                f"{own(parameter).shape[1]} of its {parameter.shape[1]} columns would cut: choose another "
                "model_parallel.tensor_model_parallel_size, or begin the moments anew: checkpoint.keys_not_to_resume=[optim]"
            )
        shapes = {scales: _zero_scales(parameter)} if scales in present else {}
        loaded = {
            key: _own_part(saved[key], shapes.get(key, parameter), f"{key} of parameter {index}") for key in present
        }
        if present == wanted and all(loaded[key].dtype == state[key].dtype for key in present):
            for key in present:
                own(state[key]).copy_(loaded[key])
            return True
        here = {key: _rows(own(state[key])) for key in wanted}
        value = _read({key: _rows(tensor) for key, tensor in loaded.items()}, name)
        first_row, key = self._place(index, parameter)
        seed = derive_seed(self.seed, int(state["step"]), f"{key} load {name}")
        _write(here, name, value, first_row * value.shape[1], seed)
        return False


def random_bits(start: int, count: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """Return 16 random bits, as int16 (count,), for each of the elements start .. start + count of a sequence.

    The bits of an element depend on `key` (63 bits) and its number alone. A 32-bit hash (multiplications and shifts with
    the constants of lowbias32) of half the number gives those of two neighbours.
    """
    first = start // 2
    length = (start + count + 1) // 2 - first
    x = torch.arange(length, dtype=torch.int32, device=device).add_(_signed(first + key))
    for turn in range(2):
        x ^= (x >> 16) & 0xFFFF
        x *= 0x7FEB352D
        x ^= (x >> 15) & 0x1FFFF
        x *= _signed(0x846CA68B)
        x ^= (x >> 16) & 0xFFFF
        if turn == 0:  # without a second key, sequences would be shifted copies of each other
            x ^= _signed(key >> 32)
    return x.view(torch.int16)[start - 2 * first :][:count]


def stochastic_round(x: Tensor, bits: Tensor) -> Tensor:
    """Return float32 `x` as bfloat16: the neighbour above or below, with the probabilities whose mean is x.

    bits: int16, uniform, of x's shape. Values that bfloat16 has, infinities and NaN stay.
    """
    moved = x.view(torch.int32).add(bits).add_(1 << 15).bitwise_and_(-(1 << 16)).view(torch.float32)
    return moved.masked_fill_(x.isnan(), math.nan).to(torch.bfloat16)  # a NaN's own bits may have run over


def quantise(x: Tensor, bits: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Return (codes uint8 (R, K), scales float32 (R, ceil(K / 256))) of float32 x (R, K), rounded without bias.

    A scale is the power of two above its block's largest magnitude, 0 for a block of zeros. Magnitudes are floats with 3
    bits of mantissa, neighbours at most 1/8 apart. Signed ones have 2^-15 of the scale added, so that the last 2^-15 have
    levels 2^-18 apart and 0 is one. Others end just above 2^-32 of the scale, and what is less becomes that: a second
    moment of 0 would blow up its update.

    Args:
        x: finite, below 2^126; not negative unless `signed`.
        bits: int16, uniform, (R, K).
    """
    blocks = _blocks(x)
    largest = blocks.abs().amax(dim=-1)
    exponent = (largest.view(torch.int32) >> 23).sub_(126).clamp_(-100, 126)  # of the power of two above
    scales = ((exponent + 127) << 23).view(torch.float32) * largest.sign()
    size = (blocks.abs() if signed else blocks) * ((127 - exponent) << 23).view(torch.float32)[..., None]  # exact
    size = (size.add_(_OFFSET) if signed else size).flatten(1)[:, : x.shape[1]].contiguous()
    # 16 bits of mantissa below the 3 kept ones decide with 16 random ones.
    codes = size.view(torch.int32).bitwise_right_shift_(4).add_(bits).add_(1 << 15).bitwise_right_shift_(16)
    codes = codes.sub_(_LOWEST[signed]).clamp_(0, 127 if signed else 255)
    if signed:
        codes |= (x.view(torch.int32) >> 24) & 128
    return codes.to(torch.uint8), scales


def dequantise(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Return the float32 (R, K) values of `quantise`'s result."""
    values = _levels(signed, codes.device).index_select(0, codes.flatten().int()).view(codes.shape)
    return (_blocks(values) * scales[..., None]).flatten(1)[:, : codes.shape[1]]


def _signed(number: int) -> int:
    """Return the low 32 bits as a signed number, as torch's int32 has them."""
    return ((number + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _levels(signed: bool, device: torch.device) -> Tensor:
    """Return the value of each of the 256 codes under scale 1."""
    codes = torch.arange(128 if signed else 256, dtype=torch.int32, device=device)
    values = codes.add_(_LOWEST[signed]).bitwise_left_shift_(_MANTISSA_SHIFT).view(torch.float32)
    return torch.cat([values - _OFFSET, _OFFSET - values]) if signed else values


def _blocks(x: Tensor) -> Tensor:
    """Return (R, K) as (R, blocks, BLOCK), filled up with zeros."""
    return F.pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))


def _adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, options: Mapping[str, Any]) -> None:
    """Update float32 weights p and moments m, v in place."""
    (b1, b2), lr = options["betas"], float(options["lr"])
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    denominator = v.sqrt().div_(math.sqrt(1 - b2**step)).add_(options["eps"])
    p.mul_(1 - lr * options["weight_decay"]).addcdiv_(m, denominator, value=-lr / (1 - b1**step))


def _read(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a moment in float32: the stored tensor itself where it has that dtype."""
    if name in stored:
        return stored[name].float()
    return dequantise(stored[f"{name}_codes"], stored[f"{name}_scales"], signed=name == NAMES[0])


def _write(stored: Mapping[str, Tensor], name: str, value: Tensor, element: int, key: int) -> None:
    """Store a float32 moment in the form that `stored` has."""
    if name in stored and stored[name].dtype == torch.float32:
        if stored[name] is not value:
            stored[name].copy_(value)
        return
    bits = random_bits(element, value.numel(), key, value.device).view_as(value)
    if name in stored:
        stored[name].copy_(stochastic_round(value, bits))
        return
    codes, scales = quantise(value, bits, signed=name == NAMES[0])
    stored[f"{name}_codes"].copy_(codes)
    stored[f"{name}_scales"].copy_(scales)


def _rows(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor as (R, K), the first axis kept; a vector is a column."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return tensor.view(rows, math.prod(tensor.shape[1:]))


def _holds_blocks(parameter: Tensor) -> bool:
    """Return whether no block of a row lies on several ranks."""
    return holds_rows(parameter) or (parameter.ndim == 2 and own(parameter).shape[1] % BLOCK == 0)


def _zero_scales(parameter: Tensor) -> Tensor:
    """Return float32 zeros, one for each block of the rows of `parameter`, lying over the ranks as it does."""
    rows, columns = parameter.shape[0], math.ceil(math.prod(parameter.shape[1:]) / BLOCK)
    mine = own(parameter)
    local = torch.zeros(mine.shape[0], math.ceil(math.prod(mine.shape[1:]) / BLOCK), device=mine.device)
    return shard_like(local, parameter, (rows, columns))


def _own_part(value: Tensor, target: Tensor, what: str) -> Tensor:
    """Return what this process holds of a state tensor: `value` is whole, or its part already, or a DTensor.

    target: the tensor of the parameter (or its scales) that tells the shape and lies over the processes as `value` will.
    """
    mine, value = own(target), lay_like(value, target)
    whole = not is_sharded(value) and value.shape == target.shape
    part = own(value)[part_of(target) or ()] if whole else own(value)
    if part.shape != mine.shape:
        raise CheckpointError(
            f"the saved {what} has shape {tuple(value.shape)}, expected {tuple(target.shape)}"
            + (f" or this process's part of it, {tuple(mine.shape)}" if mine.shape != target.shape else "")
        )
    return part.to(mine.device).contiguous()
