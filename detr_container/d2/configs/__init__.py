"""Configurations for detectron2: each file is one of its LazyConfig, for its tools as well as for `d2 train`."""
