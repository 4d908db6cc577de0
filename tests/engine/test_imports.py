"""What importing the engine costs, beyond torch."""

import subprocess
import sys

SLOW = ("torchvision", "matplotlib", "tensorboard", "scipy", "timm", "pycocotools", "faster_coco_eval")


def test_what_is_slow_is_imported_where_it_is_used() -> None:
    """A process that computes nothing yet (a refusal, a rank that waits for others) does not pay for it."""
    line = f"import sys, detr_container.engine.trainer; print(*set({SLOW}).intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
