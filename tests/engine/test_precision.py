"""What `train.precision` sets, and that weights cast all at once give what autocast gives."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detr_container.config.backbones import BackboneConfig
from detr_container.config.classification import ClassificationExperiment
from detr_container.config.detection import DetectionExperiment, HeadConfig
from detr_container.config.experiments import FOCAL
from detr_container.engine.precision import InPrecision, Precision, computing, described, to_cast
from detr_container.models.detector import Detector
from detr_container.tasks.detection.build import build_detector

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEAD = HeadConfig(queries=7, width=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=48, dropout=0.1)
RESNET = BackboneConfig(name="resnet18", weights="none", frozen_stages=2)
TINY = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=1, norm="batch", drop_path=0.1)
EXPERIMENTS = {
    "detr": DetectionExperiment(head=HEAD, backbone=RESNET),
    "smca": DetectionExperiment(head=replace(HEAD, kind="smca"), loss=FOCAL, backbone=TINY),
    "frozen": DetectionExperiment(head=HEAD, backbone=replace(TINY, norm="frozen")),
    "container": DetectionExperiment(head=HEAD, backbone=replace(TINY, name="container_tiny")),
    "heads": DetectionExperiment(head=HEAD, backbone=replace(TINY, name="mh_dw_tiny", norm="frozen")),
    "attention": DetectionExperiment(head=HEAD, backbone=replace(TINY, name="self_attention_tiny")),
    "dense": DetectionExperiment(head=HEAD, backbone=replace(TINY, name="container_pam_tiny", dense="interpolate")),
    "mlp": DetectionExperiment(head=HEAD, backbone=replace(TINY, name="mh_mlp_tiny", dense="interpolate")),
    "timm": DetectionExperiment(
        head=HEAD, backbone=BackboneConfig(name="timm/test_convnext", weights="none", frozen_stages=0)
    ),
}


def built(name: str) -> Detector:
    torch.manual_seed(0)
    return build_detector(EXPERIMENTS[name], 3, weights=False).train()


def outputs(model: nn.Module, passes: int = 1) -> list[Tensor]:
    """Of a batch with padding, after a gradient of each pass has been added up."""
    torch.manual_seed(1)
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([(64, 96), (50, 64)])
    found = []
    for _ in range(passes):
        output = model(images, sizes)
        found += [output.logits, output.boxes]
        (output.logits.square().mean() + output.boxes.square().mean()).backward()
    return found


def names_of(model: nn.Module) -> set[str]:
    """Of the weights that are cast."""
    cast = {id(held[name]) for held, name in to_cast(model)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in cast}


class Plainly(nn.Module):
    """A model in bfloat16 as autocast does it, cast by cast."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = self.model(*arguments)
            return result


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_casting_at_once_is_autocast_bit_for_bit(name: str) -> None:
    ours, theirs = built(name), built(name)
    mine = outputs(InPrecision(ours, "bf16", CPU), passes=2)
    plain = outputs(Plainly(theirs), passes=2)
    assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert (a.grad is None) == (b.grad is None) == (not a.requires_grad), key
        if a.grad is not None and b.grad is not None:
            assert a.grad.stride() == a.stride(), key
            torch.testing.assert_close(a.grad, b.grad, rtol=2**-7, atol=2**-8 * float(b.grad.abs().max()), msg=key)
    assert any(parameter.grad is None for parameter in ours.parameters()) == (name != "timm")


def test_which_weights_are_cast() -> None:
    """Those that autocast would cast: not what computes in float32, and not what a frozen norm is folded into."""
    names = names_of(built("detr"))
    assert {
        "input_proj.weight",
        "encoder.layers.0.self_attn.in_proj_weight",
        "decoder.layers.1.ffn.linear1.bias",
    } < names
    assert "encoder.layers.0.norm1.weight" in names
    assert not any(name.startswith(("backbone", "class_embed", "bbox_embed", "query_embed")) for name in names)
    smca = names_of(built("smca"))
    assert {"backbone.blocks.0.0.conv1.weight", "backbone.embeds.0.proj.bias"} < smca
    assert not any("reference" in name or "priors" in name or "norm1.running" in name for name in smca)
    assert "backbone.blocks.0.0.norm1.weight" not in smca
    assert "decoder.norm.weight" not in smca
    assert "backbone.blocks.0.0.position.weight" in smca
    frozen = names_of(built("frozen"))
    assert not frozen & {"backbone.blocks.0.0.conv1.weight", "backbone.blocks.0.0.mlp.0.bias"}
    assert {"backbone.blocks.0.0.conv2.weight", "backbone.blocks.0.0.mlp.2.bias"} < frozen


def test_a_weight_with_two_names_and_one_that_another_kind_of_module_uses() -> None:
    first, second, table = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Embedding(4, 4)
    second.weight = nn.Parameter(first.weight.detach().clone())
    table.weight = second.weight
    model = nn.Sequential(first, first, second)
    assert names_of(model) == {"0.weight", "2.weight"}
    assert names_of(nn.ModuleList([*model, table])) == {"0.weight"}
    x = torch.randn(3, 4)
    InPrecision(model, "bf16", CPU)(x).sum().backward()
    found, model[0].weight.grad = model[0].weight.grad, None
    Plainly(model)(x).sum().backward()
    assert isinstance(model[0].weight, nn.Parameter)
    # Both uses are added up in bfloat16 here, there in float32.
    torch.testing.assert_close(found, model[0].weight.grad, rtol=2**-6, atol=2**-6)


def test_the_state_is_the_models_and_float32_is_untouched() -> None:
    ours, theirs = built("smca"), built("smca")
    mine, plain = outputs(InPrecision(ours, "fp32", CPU)), outputs(theirs)
    assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    tf32 = outputs(InPrecision(built("smca"), "tf32", CPU))
    assert all(torch.equal(a, b) for a, b in zip(tf32, plain, strict=True)), "a CPU has no TF32"


def test_what_is_said() -> None:
    objects, images = DetectionExperiment.in_float32, ClassificationExperiment.in_float32
    assert described("fp32", CUDA, objects) == described("fp32", CPU, images) == "float32 (IEEE) in everything"
    assert "TF32" in described("tf32", CUDA, images)
    assert described("tf32", CPU, objects) == "float32 (IEEE) in everything, since a CPU has no TF32"
    model = "bfloat16 in the model, float32 (IEEE) in"
    assert described("bf16", CPU, objects) == f"{model} positions, boxes, matching and losses"
    assert described("bf16", CPU, images) == f"{model} losses"


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_what_is_set_for_a_gpu(precision: Precision, tf32: bool, recwarn: pytest.WarningsRecorder) -> None:
    """PyTorch's switches can be read without a GPU; nothing is computed."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.backends.cuda.cudnn_sdp_enabled()
    try:
        matmul.allow_tf32, cudnn.allow_tf32 = not tf32, not tf32
        recwarn.clear()
        for _ in range(2):
            computing(precision, CUDA)
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not [each for each in recwarn.list if "TF32" in str(each.message)]
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
        torch.backends.cuda.enable_cudnn_sdp(before[2])


@pytest.mark.gpu
def test_tf32_and_ieee_on_a_gpu() -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 256, 32, 32, device="cuda"), torch.randn(64, 256, 3, 3, device="cuda")
    exact = nn.functional.conv2d(x.double(), kernel.double())
    a, b = torch.randn(512, 512, device="cuda"), torch.randn(512, 512, device="cuda")
    bounds: dict[Precision, tuple[float, float]] = {"fp32": (0.0, 1e-4), "tf32": (1e-4, 1e-2), "bf16": (1e-4, 3e-2)}
    for precision, (low, high) in bounds.items():
        with computing(precision, CUDA):
            errors = [
                float((found.double() - true).abs().max() / true.abs().max())
                for found, true in ((nn.functional.conv2d(x, kernel), exact), (a @ b, a.double() @ b.double()))
            ]
        assert all(low <= error < high for error in errors), (precision, errors)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_casting_at_once_is_autocast_on_a_gpu(name: str) -> None:
    model = built(name).to("cuda").eval()
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, device="cuda")
    sizes = torch.tensor([(64, 96), (50, 64)], device="cuda")
    with torch.no_grad():
        mine = InPrecision(model, "bf16", CUDA)(images, sizes)
        with computing("bf16", CUDA):
            plain = model(images, sizes)
    torch.testing.assert_close(mine.logits, plain.logits, rtol=0.02, atol=0.02)
    torch.testing.assert_close(mine.boxes, plain.boxes, rtol=0.02, atol=0.02)
