"""The precision in which a model computes: what PyTorch is set to, and what is cast when.

Norms keep bfloat16 as it comes; losses are float32 in every precision, and what else a task says
(`Experiment.in_float32`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Precision = Literal["fp32", "tf32", "bf16"]
_WORDS: dict[Precision, str] = {
    "fp32": "float32 (IEEE) in everything",
    "tf32": "TF32 in matrix products and convolutions, float32 (IEEE) in everything else",
    "bf16": "bfloat16 in the model, float32 (IEEE) in",
}
Place = tuple[dict[str, Any], str]
"""The dictionary of a module's own weights, and a name in it."""


@runtime_checkable
class OwnPrecision(Protocol):
    """What a module may say of its parts."""

    def own_precision(self) -> list[nn.Module]:
        """The parts that compute in float32 whatever the precision, or that cast their weights by themselves."""


def described(precision: Precision, device: torch.device, in_float32: str) -> str:
    """What computes in which numbers, in words; in_float32: see `Experiment`."""
    if precision == "tf32" and device.type == "cpu":
        return f"{_WORDS['fp32']}, since a CPU has no TF32"
    return f"{_WORDS['bf16']} {in_float32}" if precision == "bf16" else _WORDS[precision]


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Where a model is called: its forward pass within this, and what follows, compute in a precision.

    The context is autocast's, for bfloat16; what must be float32 leaves it by itself. What PyTorch is set to besides
    stays set, since a gradient is computed after the context: whether a GPU may round the inputs of matrix
    products and convolutions to TF32 (by itself PyTorch lets convolutions), and that cuDNN computes no attention.
    """
    if device.type == "cuda":
        _set_kernels(tf32=precision == "tf32")
    # Without its cache of cast weights: each is used once, and a CUDA graph must not refer to one made before it.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def _set_kernels(tf32: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # It makes a plan for every new shape, which takes seconds, and computes no faster afterwards.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32):
        return
    with warnings.catch_warnings():
        # PyTorch 2.9 and later have other names for them, which must not be used beside these.
        warnings.filterwarnings("ignore", "Please use the new API settings")
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32


class InPrecision(nn.Module):
    """A model in training, computing in a precision.

    For bfloat16 its weights are cast all at once, by one operation, and their gradients by another, which takes the
    place of two small casts for each weight. The weights stay the model's own, in float32.
    """

    def __init__(self, model: nn.Module, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.model, self._precision, self._device = model, precision, device
        self._places = to_cast(model) if precision == "bf16" else []

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the model gives."""
        with computing(self._precision, self._device):
            if not self._places:
                return self.model(*arguments, **named)
            weights = [held[name] for held, name in self._places]
            try:
                # As `torch.func.functional_call`, which loses the weights of a module that has two names.
                self._put(_Cast.apply(torch.bfloat16, *weights))
                return self.model(*arguments, **named)
            finally:
                self._put(weights)

    def _put(self, tensors: Sequence[Tensor]) -> None:
        for (held, name), tensor in zip(self._places, tensors, strict=True):
            held[name] = tensor


def to_cast(model: nn.Module) -> list[Place]:
    """The weights that autocast would cast in every forward pass, where they stand in their modules.

    Left out is what a module lists in its `own_precision`, modules that compute in float32 or cast by themselves, and
    what a module of another kind uses as well.
    """
    modules = list(model.modules())
    own = [part for module in modules if isinstance(module, OwnPrecision) for part in module.own_precision()]
    kept = {id(p) for part in own for p in part.parameters()}
    cast = _cast_types()
    kept |= {id(p) for module in modules if type(module) not in cast for p in module.parameters(recurse=False)}
    return [
        (module._parameters, name)
        for module in modules
        for name, p in module.named_parameters(recurse=False)
        if id(p) not in kept and p.dtype == torch.float32
    ]


def _cast_types() -> tuple[type[nn.Module], ...]:
    """Autocast casts the weights of these, and of nothing derived from them: who derives may compute otherwise."""
    # Here, since they import torchvision, which a process that computes nothing yet need not wait for.
    from detr_container.models.layers.attention import Attention
    from detr_container.models.layers.depthwise import Depthwise
    from detr_container.models.layers.layer_norm import LayerNorm
    from detr_container.models.layers.pointwise import Pointwise

    own = (Attention, Depthwise, LayerNorm, Pointwise)
    return (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, *own)


class _Cast(torch.autograd.Function):
    """Tensors in another type; each lies in memory as before, and so does its gradient."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights)
        cast = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(cast, list(weights))
        ctx.mark_non_differentiable(
            *(each for each, needed in zip(cast, ctx.needs_input_grad[1:], strict=True) if not needed)
        )
        return tuple(cast)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = zip(gradients, ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        wide = [torch.empty_like(w) if use and g is not None else None for g, w, use in needed]
        pairs = [(a, _lying_as(g, a)) for a, g in zip(wide, gradients, strict=True) if a is not None and g is not None]
        if pairs:
            torch._foreach_copy_([a for a, _ in pairs], [g for _, g in pairs])
        return None, *wide


def _lying_as(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient with the strides of `like` where they differ in sides of length 1 alone.

    There they mean nothing, but a single other stride would make one kernel a tensor of one kernel for all.
    """
    same = all(a == b for a, b, side in zip(gradient.stride(), like.stride(), like.shape, strict=True) if side > 1)
    return gradient.as_strided(like.shape, like.stride()) if same else gradient
