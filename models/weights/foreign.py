"""Detectors whose weights cannot be loaded here, each known by names that only it has."""

from __future__ import annotations

import re
from collections.abc import Iterable

LOADABLE = (
    "DETR and single-scale SMCA-DETR can be loaded: of this program, of the published code, in detectron2's form, or "
    "(DETR) of Hugging Face; so can detectron2's RetinaNet and Mask R-CNN"
)

# The first that fits counts: later ones share some of the earlier ones' parts.
_SIGNS = [
    (name, re.compile(pattern))
    for name, pattern in (
        ("D-FINE or DEIM", r"decoder\.(pre_bbox_head|lqe_layers|integral)\b"),
        ("RT-DETR", r"\b(denoising_class_embed|enc_score_head|dec_score_head)\."),
        ("RF-DETR or LW-DETR", r"\bbackbone\.0\.(encoder|projector)\."),
        ("Mask2Former or MaskFormer", r"\b(sem_seg_head|pixel_decoder|pixel_level_module)\."),
        ("multi-scale SMCA-DETR", r"encoder\.layers\.\d+\.self_attn_(8|16|32|64)\."),
        ("DINO", r"\b(tgt_embed|enc_out_class_embed|enc_out_bbox_embed)\.|^.*\btransformer\.enc_output\."),
        ("DN-DETR", r"\blabel_enc\."),
        ("DAB-DETR", r"\b(refpoint_embed|query_refpoint_embeddings)\."),
        ("Deformable DETR", r"\bsampling_offsets\."),
        (
            "Conditional DETR",
            r"\b(ref_point_head|query_scale|sa_qcontent_proj|ca_qcontent_proj)\.",
        ),
        ("Anchor DETR", r"\btransformer\.(pattern|adapt_pos2d|adapt_pos1d)\b"),
        ("DETR with a class head per layer (Deformable DETR or DINO)", r"\bclass_embed\.\d+\.(weight|bias)$"),
        ("YOLOS", r"\bdetection_tokens$"),
        (
            "another region-proposal detector than detectron2's Mask R-CNN (Faster or Cascade R-CNN)",
            r"\b(roi_heads|rpn|roi_head|rpn_head)\.",
        ),
        (
            "another dense detector than detectron2's RetinaNet (torchvision's, FCOS)",
            r"\b(classification_head|bbox_head|ctrness|head\.cls_score)\.",
        ),
        ("YOLO", r"^(model\.)*\d+\.(conv|cv1|bn)\."),
    )
]


def foreign(names: Iterable[str]) -> str:
    """Which other detector the names of a file's tensors are those of, with one of them; empty when none is known."""
    names = list(names)
    for detector, sign in _SIGNS:
        shown = next((name for name in names if sign.search(name)), None)
        if shown is not None:
            return f"{detector} ({shown})"
    return ""
