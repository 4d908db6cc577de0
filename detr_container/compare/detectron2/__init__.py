"""Detectors that detectron2 trained, from the folders that it wrote, beside runs of ours; without importing it."""
