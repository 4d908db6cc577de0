"""DETR, ResNet-50, 50 epochs of COCO: the named experiment of that name in detectron2's loop."""

from .common.data import detr_data
from .common.models import detr
from .common.optimizers import detr_optimizer
from .common.schedule import ALL, drop_at, lasting
from .common.train import train

train = lasting(train, 50, ALL, "detr_r50_50e")
model = detr("r50")
optimizer = detr_optimizer()
lr_multiplier = drop_at(40, epochs=50)
dataloader = detr_data()
