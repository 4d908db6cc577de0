"""A process of two that train a DETR of detectron2's. Usage: detectron2_ranks.py FOLDER RANK.

Each takes one image's losses through detectron2's DistributedDataParallel and writes the gradients.
"""

import json
import os
import sys
from pathlib import Path

import torch
from d2.test_meta_archs import FROZEN, given, model, pictures
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm

from detr_container.config.detection import LossConfig
from detr_container.engine.session import open_session


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    told = json.loads((folder / "given.json").read_text())
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = told["port"]
    with open_session("cpu"):
        comm.create_local_process_group(2)
        for mode in told["modes"]:
            built = model("DETR", backbone=FROZEN, loss=LossConfig(normalise=mode)).train()
            parallel = create_ddp_model(built, device_ids=None, broadcast_buffers=False)
            sum(parallel([given(pictures(), known=True)[rank]]).values()).backward()
            gradients = {name: p.grad for name, p in built.named_parameters() if p.requires_grad}
            torch.save(gradients, folder / f"{mode}-{rank}.pt")


if __name__ == "__main__":
    main()
