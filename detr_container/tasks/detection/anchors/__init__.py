"""RetinaNet and Mask R-CNN, whose models and losses are detectron2's."""
