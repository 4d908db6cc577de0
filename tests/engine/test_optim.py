"""The optimizer against PyTorch's own clipping and AdamW, and the learning rates against a naive loop."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import tiny
from torch import Tensor, nn

from detr_container.config.detection import DetectionTrainConfig
from detr_container.config.settings import TrainConfig
from detr_container.engine.optimizer import (
    clipped_step,
    layered_groups,
    lr_factor,
    make_optimizer,
    parameter_names,
    set_rates,
)
from detr_container.models.detector import Detector
from detr_container.tasks.detection.build import build_detector
from detr_container.tasks.detection.groups import parameter_groups


def detector() -> Detector:
    return build_detector(tiny(Path("unused")), 6)


def give_gradients(model: nn.Module, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("clip", [0.1, 0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_clipped_step_is_clip_grad_norm_and_adamw(clip: float, scale: float) -> None:
    """Five steps; gradients far above the limit, and far below it."""
    config = DetectionTrainConfig(lr=1e-3, lr_backbone=1e-4, clip=clip)
    ours = detector()
    theirs = copy.deepcopy(ours)
    optimizer = make_optimizer(parameter_groups(ours, config), config)
    groups = [
        {"params": [p for n, p in theirs.named_parameters() if not n.startswith("backbone.")], "lr": config.lr},
        {"params": [p for n, p in theirs.named_parameters() if n.startswith("backbone.")], "lr": config.lr_backbone},
    ]
    reference = torch.optim.AdamW(groups, weight_decay=config.weight_decay, foreach=False)
    for step in range(5):
        set_rates(optimizer, 1.0)
        give_gradients(ours, scale, step)
        give_gradients(theirs, scale, step)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
        reference.step()
        norm, norms = clipped_step(optimizer, clip)
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(norms.square().sum().sqrt(), expected)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
        assert mine.grad is None


@pytest.mark.parametrize("clip", [0.1, 0.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(poison: float, clip: float) -> None:
    model = detector()
    optimizer = make_optimizer(parameter_groups(model, DetectionTrainConfig()), DetectionTrainConfig())
    give_gradients(model, 1.0, 0)
    clipped_step(optimizer, clip)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict()["state"])
    give_gradients(model, 1.0, 1)
    wrong = "decoder.layers.1.ffn.linear1.weight"
    gradient = model.get_parameter(wrong).grad
    assert gradient is not None
    gradient[3, 4] = poison
    norm, norms = clipped_step(optimizer, clip)
    assert not norm.isfinite()
    bad = [name for name, value in zip(parameter_names(model, optimizer), norms, strict=True) if not value.isfinite()]
    assert bad == [wrong]
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            assert torch.equal(value, state[index][key]), (index, key)
    give_gradients(model, 1.0, 2)
    norm, _ = clipped_step(optimizer, clip)
    assert norm.isfinite()
    assert not torch.equal(model.get_parameter(wrong), weights[wrong])


def naive_factor(step: int, per_epoch: int, config: DetectionTrainConfig) -> float:
    """The schedule by walking there from step 0."""
    factor, total = 1.0, config.epochs * per_epoch
    for now in range(step + 1):
        epoch = now // per_epoch
        if config.schedule == "step":
            factor = 1.0 if epoch < config.lr_drop else 0.1
            factor *= 0.1 if 0 < config.lr_drop_again <= epoch else 1.0
        else:
            done = 0.0
            if now >= config.warmup_steps:
                done = (now - config.warmup_steps) / max(1, total - config.warmup_steps)
            factor = (1 + math.cos(math.pi * done)) / 2
        if now < config.warmup_steps:
            factor *= (now + 1) / config.warmup_steps
    return factor


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.tuples(st.integers(0, 6), st.integers(0, 3)),
    st.integers(0, 40),
    st.sampled_from(["step", "cosine"]),
)
def test_the_schedule_against_a_naive_loop(
    epochs: int, per_epoch: int, drops: tuple[int, int], warmup: int, schedule: str
) -> None:
    drop, later = drops
    config = replace(DetectionTrainConfig(), epochs=epochs, lr_drop=drop, warmup_steps=warmup, schedule=schedule)
    config = replace(config, lr_drop_again=drop + later if later else 0)
    for step in range(epochs * per_epoch):
        factor = lr_factor(step, per_epoch, config)
        assert factor == pytest.approx(naive_factor(step, per_epoch, config), abs=1e-12)
        assert 0 <= factor <= 1


def test_the_published_schedule() -> None:
    config = DetectionTrainConfig()
    factors = [lr_factor(epoch * 7392, 7392, config) for epoch in range(50)]
    assert factors == [1.0] * 40 + [0.1] * 10
    assert lr_factor(40 * 7392 - 1, 7392, config) == 1.0


def test_groups_hold_every_trained_parameter_once() -> None:
    model = detector()
    model.backbone.freeze(1)
    optimizer = make_optimizer(
        parameter_groups(model, DetectionTrainConfig(lr=3e-4, lr_backbone=2e-5)),
        DetectionTrainConfig(lr=3e-4, lr_backbone=2e-5),
    )
    set_rates(optimizer, 0.1)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"head": 3e-5, "backbone": 2e-6})
    names = parameter_names(model, optimizer)
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    held: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(model.get_parameter(name) is p for name, p in zip(names, held, strict=True))
    assert not any(name.startswith("backbone.embeds.0") for name in names)


def test_a_backbone_with_nothing_to_train() -> None:
    model = detector()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"backbone is to be trained.*lr_backbone=1e-05.*no parameter to train"):
        make_optimizer(parameter_groups(model, DetectionTrainConfig()), DetectionTrainConfig())
    model.backbone.freeze(3)
    assert [
        group["name"]
        for group in make_optimizer(
            parameter_groups(model, DetectionTrainConfig()), DetectionTrainConfig()
        ).param_groups
    ] == ["head"]


def test_learned_positions_train_with_the_backbone() -> None:
    model = build_detector(tiny(Path("unused"), head__position="learned"), 6)
    optimizer = make_optimizer(parameter_groups(model, DetectionTrainConfig()), DetectionTrainConfig())
    names = dict(zip(map(id, model.parameters()), dict(model.named_parameters()), strict=True))
    slow = [names[id(p)] for group in optimizer.param_groups if group["name"] == "backbone" for p in group["params"]]
    assert slow[-2:] == ["position.row_embed.weight", "position.col_embed.weight"]
    assert all(name.startswith("backbone.") for name in slow[:-2])


def test_groups_by_layer_and_without_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    groups = layered_groups(model, 1e-3, layer_of=lambda name: int(name.split(".")[0]), layer_decay=0.5)
    assert [(g["name"], g["base_lr"], g.get("weight_decay")) for g in groups] == [
        ("layer0", 0.25e-3, None),
        ("layer1_undecayed", 0.5e-3, 0.0),
        ("layer2", 1e-3, None),
        ("layer2_undecayed", 1e-3, 0.0),
    ]
    assert [len(g["params"]) for g in groups] == [1, 2, 1, 1]
    assert [g["name"] for g in layered_groups(model, 1e-3)] == ["all", "all_undecayed"]


def test_scheduled_decay_leaves_alone_what_does_not_decay() -> None:
    """With no gradient to speak of, a step multiplies what decays by 1 - lr x decay, and nothing else."""
    model = nn.Linear(4, 2)
    optimizer = make_optimizer(layered_groups(model, lr=0.1), TrainConfig(weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for decay in (None, 0.25):
        set_rates(optimizer, 0.5, decay)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        clipped_step(optimizer, 0.0)
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.05 * 0.5) * (1 - 0.05 * 0.25))
    assert torch.equal(model.bias, before["bias"])
