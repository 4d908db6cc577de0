"""Any timm model that gives feature maps, as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..layers.cpu.safe_convolution import subsample_first
from ..layers.depthwise import use_depthwise
from ..layers.frozen_norm import freeze_norms
from .backbone import Backbone
from .staged import stages_of
from .timm_fit import channels_first, create, fit, making, normalisation
from .timm_positions import fitted_positions


class TimmBackbone(Backbone):
    """Any timm model that offers feature maps, by name."""

    def __init__(
        self,
        name: str,
        stage: int = -1,
        stride: int = 0,
        pretrained: bool = False,
        frozen_norm: bool = False,
        drop_path: float = 0.0,
        canvas: int = 0,
    ) -> None:
        """Build up to one feature map; stage, stride: see `maps_up_to`; canvas, and what is refused: see `fit`.

        name: as timm spells it; pretrained: timm's weights, downloaded to its cache at first use.
        """
        found = fit(name, stage, stride, canvas)
        options: dict[str, Any] = dict(found.options) | ({"drop_path_rate": drop_path} if drop_path else {})
        with making(name, drop_path):
            body = create(name, options, pretrained)
        super().__init__(found.channels, found.strides, found.multiple, *normalisation(name))
        self.name, self.side = name, found.side
        self.body = freeze_norms(body) if frozen_norm else body
        use_depthwise(subsample_first(self.body))
        self._ends = [module.replace(".", "_") for module in body.feature_info.module_name()]
        self._nhwc = found.nhwc

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """Timm's modules in order, cut after each one that gives a feature map."""
        children = dict(self.body.named_children())
        # Plain transformers are wrapped once more.
        root = children["model"] if list(children) == ["model"] else self.body
        return stages_of(root, self._ends)

    def fitted(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """See `Backbone`; positions are interpolated."""
        wrapped = [*dict(self.body.named_children())] == ["model"]
        root, name = (self.body.model, "body.model.pos_embed") if wrapped else (self.body, "body.pos_embed")
        return fitted_positions(root, name, state, source)

    def every_map(self, images: Tensor) -> list[Tensor]:
        """As `Backbone.every_map`. Raises ValueError for images of another size than the only one."""
        height, width = images.shape[-2:]
        if self.side and (height, width) != (self.side, self.side):
            raise ValueError(
                f"timm/{self.name} takes images of {self.side} x {self.side} pixels only, not of {height} x {width}: "
                f"no image may have a longer side than {self.side}"
            )
        return channels_first(self.body(images), self._nhwc)
