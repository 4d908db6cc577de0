"""Mask R-CNN, CONTAINER-LIGHT, 12 epochs of COCO's images with objects: the recipe of "Container" (Gao et al. 2021)."""

from .common.data import pyramid_data
from .common.models import mask_rcnn
from .common.optimizers import pyramid_optimizer
from .common.schedule import WITH_OBJECTS, drop_at, lasting, warmed_up
from .common.train import train

train = lasting(train, 12, WITH_OBJECTS, "mask_rcnn_container_light_1x")
model = mask_rcnn("container_light")
optimizer = pyramid_optimizer()
lr_multiplier = warmed_up(drop_at(8, 11, epochs=12), 500, train["max_iter"])
dataloader = pyramid_data(masks=True)
