"""What detectron2's loop is told beside model, optimizer and data; the configurations add how long it is."""

from typing import Any

import torch

train: dict[str, Any] = {
    "output_dir": "output",
    # Weights of the whole model to start from; those of the backbone are loaded where it is built.
    "init_checkpoint": "",
    "max_iter": 0,
    # Mixed precision, which needs a GPU.
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 0, "max_to_keep": 2},
    "eval_period": 0,
    "log_period": 20,
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    # Another order of the data at each start.
    "seed": -1,
}
