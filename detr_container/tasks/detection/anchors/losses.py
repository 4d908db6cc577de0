"""The losses of RetinaNet and Mask R-CNN, by our names."""

LOSSES = {
    "retinanet": {"class": "loss_cls", "box": "loss_box_reg"},
    "mask_rcnn": {
        "proposal_class": "loss_rpn_cls",
        "proposal_box": "loss_rpn_loc",
        "class": "loss_cls",
        "box": "loss_box_reg",
        "mask": "loss_mask",
    },
}
"""What detectron2 calls them, by `HeadConfig.kind`."""
