"""Train, evaluate and fairly compare DETR-family detectors over CONTAINER-LIGHT and other backbones."""

__version__ = "0.1.0"
