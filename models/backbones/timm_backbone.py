"""Any timm model that gives feature maps, as a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..layers.cpu.safe_convolution import subsample_first
from ..layers.depthwise import use_depthwise
from ..layers.frozen_norm import freeze_norms
from .backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from .timm_fit import channels_first, create, fit


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
        import timm

        found = fit(name, stage, stride, canvas)
        options: dict[str, Any] = dict(found.options) | ({"drop_path_rate": drop_path} if drop_path else {})
        try:
            body = create(name, options, pretrained)
        except TypeError as error:
            raise ValueError(f"timm/{name} takes no backbone.drop_path={drop_path} ({error}): set it to 0") from error
        except RuntimeError as error:
            raise ValueError(f"timm/{name} cannot be made: {error}") from error
        except OSError as error:
            raise ValueError(
                f"the weights of timm/{name} could not be downloaded ({error}): fetch them where there is a network "
                f"({_address(name)}), or start from random weights with backbone.weights=none"
            ) from error
        cfg = timm.get_pretrained_cfg(name)
        mean, std = (cfg.mean, cfg.std) if cfg else (IMAGENET_MEAN, IMAGENET_STD)
        super().__init__(found.channels, found.strides, found.multiple, mean, std)
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
        stages: list[tuple[str, list[nn.Module]]] = []
        modules: list[nn.Module] = []
        for name, module in self._pieces(root, ""):
            modules.append(module)
            if name in self._ends:
                stages.append((name, modules))
                modules = []
        if modules:
            stages.append(("rest", modules))
        return stages

    def _pieces(self, module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of every part, as small as needed for each feature map to be the end of one."""
        own = list(module.parameters(recurse=False))
        if own:
            yield f"{prefix}own", nn.ParameterList(own)
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path not in self._ends and any(end.startswith(f"{path}_") for end in self._ends):
                yield from self._pieces(child, f"{path}_")
            else:
                yield path, child

    def every_map(self, images: Tensor) -> list[Tensor]:
        """As `Backbone.every_map`. Raises ValueError for images of another size than the only one."""
        height, width = images.shape[-2:]
        if self.side and (height, width) != (self.side, self.side):
            raise ValueError(
                f"timm/{self.name} takes images of {self.side} x {self.side} pixels only, not of {height} x {width}: "
                f"no image may have a longer side than {self.side}"
            )
        return channels_first(self.body(images), self._nhwc)


def _address(name: str) -> str:
    """Where a timm model's pretrained weights are."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return "timm names no address"
    return f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url)
