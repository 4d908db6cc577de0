"""A second task: a linear classifier of synthetic images, noise with one bright row, that the engine can train."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from detr_container.config.experiments import experiment
from detr_container.config.settings import Experiment, Metric, TrainConfig
from detr_container.engine.optimizer import layered_groups
from detr_container.engine.session import Session
from detr_container.engine.task import Evaluation, Task


@dataclass(frozen=True)
class ToyExperiment(Experiment):
    task: Literal["toy"] = "toy"
    name: str = "toy"
    module: ClassVar[str] = "toy_task"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "accuracy"),)
    metrics_title: ClassVar[str] = "Accuracy, %"


@experiment()
def toy() -> ToyExperiment:
    train = TrainConfig(epochs=60, batch=12, micro_batch=3, log_every=10, eval_every=20, ema_decay=0.9)
    return ToyExperiment(train=train, device="cpu")


class ToyBatch(NamedTuple):
    images: Tensor
    labels: Tensor
    image_ids: tuple[int, ...]

    def to(self, device: torch.device) -> "ToyBatch":
        return ToyBatch(self.images.to(device), self.labels.to(device), self.image_ids)


def synthetic(ids: list[int]) -> ToyBatch:
    noise = [torch.randn(8, 8, generator=torch.Generator().manual_seed(index)) for index in ids]
    labels = torch.tensor(ids) % 3
    return ToyBatch(torch.stack(noise) + 2 * nn.functional.one_hot(labels, 8)[:, :, None], labels, tuple(ids))


class ToyTask(Task):
    meters = ("correct",)
    training_images = 60

    def build(self, weights: bool) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3))

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return layered_groups(model, lr=0.01)

    def weight_decay(self, progress: float) -> float:
        return 0.04 + 0.36 * progress

    def batches(self, model: nn.Module, sampler: Any, pin_memory: bool, ends: Any) -> Any:
        return (synthetic([index for _, index in keys]) for keys in sampler)

    def forward(self, model: nn.Module, batch: ToyBatch) -> Tensor:
        return model(batch.images)

    def loss(self, scores: Tensor, answer: None, batch: ToyBatch, divisors: Tensor, share: float) -> Any:
        total = nn.functional.cross_entropy(scores, batch.labels, reduction="sum") / divisors[0]
        return total, (scores.argmax(1) == batch.labels).float().mean()[None] * share

    def evaluate(self, model: nn.Module, run: Any, epoch: int, session: Session, on_batch: Any, ends: Any) -> Any:
        unseen = synthetic([*range(1000, 1090)]).to(session.device)
        with torch.inference_mode():
            found = float((copy.deepcopy(model).eval()(unseen.images).argmax(1) == unseen.labels).float().mean())
        on_batch(1, 1)
        return Evaluation({"accuracy": found}, f"accuracy {found:.3f}", f"{found:.3f}") if session.main else None


def open_task(settings: ToyExperiment, session: Session) -> ToyTask:
    return ToyTask()
