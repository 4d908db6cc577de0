"""DETR's gradients are clipped as a whole in detectron2's loops, and its parameters are two groups."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

from d2.test_meta_archs import given, model, pictures, yacs
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver import LRMultiplier

from detr_container.d2.config_files import config_file
from detr_container.d2.optimizers import ClippedAdamW, parameter_groups
from detr_container.d2.training import Trainer


class Huge(nn.Module):
    """A model whose losses are a thousand times as large."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: 1000 * loss for name, loss in self.inside(inputs).items()}


def batches() -> Iterator[list[dict[str, Any]]]:
    while True:
        yield given(pictures(), known=True)


def gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def lazy_optimizer(built: nn.Module) -> ClippedAdamW:
    """That of the configuration."""
    node = LazyConfig.load(config_file("detr_r50_50e")).optimizer
    node.params.model = built
    made = instantiate(node)
    assert isinstance(made, ClippedAdamW)
    return made


def yacs_optimizer(built: nn.Module) -> ClippedAdamW:
    """That of `Trainer`."""
    made = Trainer.build_optimizer(yacs("DETR"), built)
    assert isinstance(made, ClippedAdamW)
    return made


makers = pytest.mark.parametrize("make", [lazy_optimizer, yacs_optimizer])


@makers
def test_a_step_of_the_loop_clips_the_whole_gradient(make: Any) -> None:
    built = model("DETR")
    optimizer = make(built)
    trainer = SimpleTrainer(Huge(built), batches(), optimizer)
    seen: list[float] = []
    trainer.after_backward = lambda: seen.append(gradient_norm(optimizer))
    trainer.train(0, 1)
    assert seen[0] > 100
    assert gradient_norm(optimizer) == pytest.approx(0.1, rel=1e-3)


def test_a_small_gradient_is_left_alone() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 0.01)
    ClippedAdamW([weight]).step()
    assert torch.equal(weight.grad, torch.full((4,), 0.01))
    assert weight.abs().min() > 0


def test_a_scaler_has_unscaled_what_is_clipped() -> None:
    """As AMPTrainer steps, whose scaler would leave that to a fused optimizer."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = ClippedAdamW([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * 0.01).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(weight.grad, torch.full((4,), 0.01))
    weight.grad = None
    scaler.scale((weight * 100).sum()).backward()
    scaler.step(optimizer)
    assert float(weight.grad.norm()) == pytest.approx(0.1, rel=1e-3)


def test_fused_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="fused=True"):
        ClippedAdamW([nn.Parameter(torch.zeros(1))], fused=True)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mixed_precision_clips_as_well() -> None:
    built = model("DETR").cuda()
    optimizer = lazy_optimizer(built)
    trainer = AMPTrainer(Huge(built), batches(), optimizer, grad_scaler=torch.amp.GradScaler("cuda", init_scale=1.0))
    trainer.train(0, 1)
    assert gradient_norm(optimizer) == pytest.approx(0.1, rel=1e-2)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, float("inf"), 0.0])
    with pytest.raises(FloatingPointError, match="the norm of the gradient is inf, and no step was made"):
        ClippedAdamW([weight]).step()
    assert torch.equal(weight, torch.ones(3))


def test_without_clipping_gradients_stay() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = ClippedAdamW([weight], clip=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 1000 * weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1000
    assert float(weight.grad) == 1000


@makers
def test_two_groups_with_their_rates(make: Any) -> None:
    built = model("DETR")
    groups = {group["name"]: group for group in make(built).param_groups}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "head": (1e-4, 1e-4),
        "backbone": (1e-5, 1e-4),
    }
    inside = set(map(id, built.detector.backbone.parameters()))
    assert {id(p) in inside for p in groups["backbone"]["params"]} == {True}
    trained = [p for p in built.parameters() if p.requires_grad]
    assert sorted(id(p) for group in groups.values() for p in group["params"]) == sorted(map(id, trained))


def test_a_frozen_backbone_is_no_group() -> None:
    built = model("DETR")
    built.detector.backbone.requires_grad_(False)
    built.detector.backbone.freeze(len(built.detector.backbone.stages()))
    assert [group["name"] for group in parameter_groups(built)] == ["head"]


def test_another_way_to_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CLIP_TYPE=value.*set CLIP_TYPE to full_model"):
        Trainer.build_optimizer(yacs("DETR", SOLVER__CLIP_GRADIENTS__CLIP_TYPE="value"), model("DETR"))


def test_yacs_can_do_without_clipping() -> None:
    cfg = yacs("DETR", SOLVER__CLIP_GRADIENTS__ENABLED=False)
    optimizer = Trainer.build_optimizer(cfg, model("DETR"))
    assert isinstance(optimizer, ClippedAdamW)
    assert optimizer.clip == 0


def test_rates_fall_after_40_of_50_epochs() -> None:
    multiplier = instantiate(LazyConfig.load(config_file("smca_container_light_50e")).lr_multiplier)
    optimizer = lazy_optimizer(model("DETR"))
    scheduler = LRMultiplier(optimizer, multiplier, max_iter=500)
    found = []
    for _ in range(500):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert found[0] == found[399] == pytest.approx([1e-4, 1e-5])
    assert found[400] == found[499] == pytest.approx([1e-5, 1e-6])


def test_yacs_has_the_same_schedule() -> None:
    cfg = yacs("DETR")
    lazy = LazyConfig.load(config_file("detr_r50_50e")).train
    assert cfg.SOLVER.MAX_ITER == lazy.max_iter == round(50 * 118_287 / 16)
    optimizer = yacs_optimizer(model("DETR"))
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 1e-5])
    for epoch, factor in ((0, 1), (1, 1), (39.99, 1), (40.01, 0.1), (49.9, 0.1)):
        scheduler.last_epoch = round(epoch / 50 * lazy.max_iter)
        assert scheduler.get_lr() == pytest.approx([factor * 1e-4, factor * 1e-5])


@pytest.mark.parametrize("name", ["retinanet_r50_1x", "mask_rcnn_container_light_1x"])
def test_the_recipe_of_pyramids(name: str) -> None:
    cfg = LazyConfig.load(config_file(name))
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 0.05)
    assert "clip" not in cfg.optimizer
    assert cfg.dataloader.train.total_batch_size == 16
    steps = cfg.train.max_iter
    assert steps == round(12 * 117_266 / 16)
    factor = instantiate(cfg.lr_multiplier)
    found = [factor(share) for share in (0, 250 / steps, 500 / steps, 7.99 / 12, 8 / 12, 10.99 / 12, 11 / 12)]
    assert found == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01])
