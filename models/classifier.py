"""Image classifiers: a backbone with a linear layer on its pooled feature, or a whole timm model.

Shapes: B images of H x W pixels, C features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from .backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from .backbones.plain import PlainBackbone
from .backbones.staged import Staged, stages_of
from .backbones.timm_fit import making, normalisation
from .backbones.timm_positions import fitted_positions
from .backbones.timm_whole import create_whole, ends, fault, whole
from .layers.cpu.safe_convolution import subsample_first
from .layers.depthwise import use_depthwise


class ImageClassifier(nn.Module, ABC):
    """A network that turns normalised images into one logit per class.

    mean, std: the input normalisation, for pixels in [0, 1]; side: the only side in pixels that its square images can
    have, 0 for any that its strides or patches divide; memory_format: how images lie in memory.
    """

    memory_format = torch.channels_last
    side = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] normalised images to [B, C], what the linear layer reads."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] normalised images to [B, K] logits."""

    def check_side(self, side: int) -> None:
        """Raise ValueError, with what to set, when square images of this side in pixels cannot be classified."""
        if self.side not in (0, side):
            raise ValueError(
                f"images of {side} pixels: this network was built for {self.side} and takes no others (its weights are "
                f"of one input size): use {self.side}, as data.size and data.eval_size (or 0) or as --size"
            )

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Names of parameters of two dimensions or more that weight decay does not act on."""

    @abstractmethod
    def freeze(self, stages: int) -> Self:
        """Keep the weights and statistics of the first `stages` stages as they are; see `Staged.freeze`."""

    @abstractmethod
    def checkpointed(self) -> list[nn.Module]:
        """The parts that train whose activations can be made again for the gradient, one by one."""

    @abstractmethod
    def count_parameters(self) -> list[tuple[str, int, int]]:
        """(stage, trained, frozen) numbers of parameters."""

    def decayed_or_not(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """What trains, by name: the parameters that weight decay acts on, and the others.

        The others are biases, what has one dimension (norms, mixing scalars), and `no_weight_decay`.
        """
        # From where it is defined: timm.optim does not declare it to type checkers.
        from timm.optim._param_groups import param_groups_weight_decay

        # Any weight decay but none makes both groups.
        groups = param_groups_weight_decay(self, 1.0, no_weight_decay_list=self.no_weight_decay())
        bare = {id(each) for group in groups if not group["weight_decay"] for each in group["params"]}
        trained = {name: each for name, each in self.named_parameters() if each.requires_grad}
        decayed = {name: each for name, each in trained.items() if id(each) not in bare}
        return decayed, {name: each for name, each in trained.items() if id(each) in bare}


class BackboneClassifier(ImageClassifier):
    """A backbone of ours and a linear layer on its last feature map, of which the mean over positions is taken.

    With `norm`, a BatchNorm stands before the mean, as in the released CONTAINER-LIGHT. A backbone that has a feature
    of the whole image of its own (`Backbone.pooled`) is read there.
    """

    def __init__(self, backbone: Backbone, classes: int, norm: bool = True) -> None:
        super().__init__()
        self.mean, self.std, self.side = backbone.mean, backbone.std, backbone.side
        self.memory_format = backbone.memory_format
        self.backbone = backbone
        width = backbone.channels[-1]
        self.norm: nn.Module = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def check_side(self, side: int) -> None:
        """See `ImageClassifier`."""
        if isinstance(self.backbone, PlainBackbone):
            self.backbone.check_size(side, side)
        least = self.backbone.size_multiple
        if side < least:
            raise ValueError(
                f"images of {side} pixels: nothing is left of them at this network's stride of {least}: use data.size="
                f"{least} or more (data.eval_size too; of evaluate and predict --size)"
            )
        super().check_side(side)

    def interpolated(self) -> Self:
        """Take images of any size from now on. Raises ValueError where nothing belongs to one size."""
        if not isinstance(self.backbone, PlainBackbone):
            raise ValueError("this network has no dense affinities to interpolate: leave out --interpolate")
        self.side = self.backbone.interpolated().side
        return self

    def own_precision(self) -> list[nn.Module]:
        """The linear layer, which computes in float32 whatever the precision."""
        return [self.head]

    def features(self, images: Tensor) -> Tensor:
        """See `ImageClassifier`."""
        own = self.backbone.pooled(images)
        if own is not None:
            return own
        return self.norm(self.backbone(images)[-1]).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """See `ImageClassifier`."""
        return unrounded(self.head, self.features(images))

    def no_weight_decay(self) -> set[str]:
        """See `ImageClassifier`."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def freeze(self, stages: int) -> Self:
        """See `ImageClassifier`."""
        self.backbone.freeze(stages)
        return self

    def checkpointed(self) -> list[nn.Module]:
        """See `ImageClassifier`."""
        return self.backbone.checkpointed()

    def count_parameters(self) -> list[tuple[str, int, int]]:
        """See `ImageClassifier`."""
        rest = [*self.norm.parameters(), *self.head.parameters()]
        trained = sum(each.numel() for each in rest if each.requires_grad)
        return [*self.backbone.count_parameters(), ("head", trained, sum(each.numel() for each in rest) - trained)]


class TimmClassifier(Staged, ImageClassifier):
    """Any whole timm model, by name. Its stages are those that it has as a backbone, and `rest`."""

    def __init__(
        self,
        name: str,
        classes: int,
        drop_path: float = 0.0,
        size: int = 224,
        pretrained: bool = False,
    ) -> None:
        """Build it for square images of `size` pixels; what is refused: see `whole`.

        name: as timm spells it; pretrained: timm's weights, downloaded to its cache at first use, and its classifier
        where it has as many classes.
        """
        super().__init__()
        found = whole(name, size)
        with making(name, drop_path):
            body = create_whole(
                name, classes, dict(found.options) | ({"drop_path_rate": drop_path} if drop_path else {}), pretrained
            )
        self.name, self.side = name, 0 if found.any_side else size
        self.mean, self.std = normalisation(name)
        self.body: Any = use_depthwise(subsample_first(body))
        self._built_with = found.options
        self._last = _last_layer(self.body, size)

    @property
    def published_classes(self) -> int:
        """How many classes timm's weights of it were made for."""
        return int(self.body.default_cfg.get("num_classes") or 0)

    def own_precision(self) -> list[nn.Module]:
        """The linear layer, which computes in float32 whatever the precision, where it can be told from the rest."""
        return [] if self._last is None else [self.body.get_submodule(self._last)]

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """See `Staged`; a model that cannot be a backbone is one stage."""
        cuts = ends(self.name)
        return stages_of(self.body, cuts) if cuts else [("whole", [self.body])]

    def fitted(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Weights from a file, under this model's names, with positions interpolated for its images' size."""
        return fitted_positions(self.body, "body.pos_embed", state, source)

    def last_names(self) -> list[str]:
        """The names of the weights that depend on the number of classes."""
        named = self.body.default_cfg.get("classifier") or ()
        layers = [named] if isinstance(named, str) else list(named)
        return [name for name in self.state_dict() if name.startswith(tuple(f"body.{layer}." for layer in layers))]

    def features(self, images: Tensor) -> Tensor:
        """See `ImageClassifier`."""
        pooled: Tensor = self.body.forward_head(self.body.forward_features(images), pre_logits=True)
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """See `ImageClassifier`."""
        if self._last is None:
            logits: Tensor = self.body(images)
            return logits
        return unrounded(self.body.get_submodule(self._last), self.features(images))

    def no_weight_decay(self) -> set[str]:
        """See `ImageClassifier`; what the model says of itself."""
        said: set[str] = getattr(self.body, "no_weight_decay", set)()
        return {f"body.{name}" for name in said}

    def check_side(self, side: int) -> None:
        """See `ImageClassifier`."""
        super().check_side(side)
        reason = fault(self.name, dict(self._built_with), side)
        if reason:
            raise ValueError(f"timm/{self.name} takes no images of {side} x {side} pixels ({reason}): use another size")


def unrounded(layer: nn.Module, features: Tensor) -> Tensor:
    """A linear layer in its own precision, whatever that of the rest: logits in bfloat16 have three digits."""
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = layer(features.to(next(layer.parameters()).dtype))
    return logits


@torch.no_grad()
def _last_layer(body: Any, size: int) -> str | None:
    """The name of a timm model's linear layer, where its logits are what that makes of its features and no more."""
    name = body.default_cfg.get("classifier")
    layer = body.get_submodule(name) if isinstance(name, str) and name else None
    if not isinstance(layer, nn.Linear):
        return None
    if layer.weight.is_meta:
        return str(name)
    training = body.training
    body.eval()
    images = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    features = body.forward_features(images)
    whole_way = isinstance(features, Tensor) and torch.equal(
        layer(body.forward_head(features, pre_logits=True)), body.forward_head(features)
    )
    body.train(training)
    return str(name) if whole_way else None
