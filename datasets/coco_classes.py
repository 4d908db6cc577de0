"""COCO's 80 classes by category id (Lin et al. 2014). The ids have gaps; published heads have a row for every id."""

from __future__ import annotations

from .annotations import Category

_NAMES = {
    1: "person bicycle car motorcycle airplane bus train truck boat",
    10: "traffic_light fire_hydrant",
    13: "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe",
    27: "backpack umbrella",
    31: "handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard",
    43: "tennis_racket bottle",
    46: "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake",
    62: "chair couch potted_plant bed",
    67: "dining_table",
    70: "toilet",
    72: "tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator",
    84: "book clock vase scissors teddy_bear hair_drier toothbrush",
}

COCO = tuple(
    Category(first + place, name.replace("_", " "))
    for first, run in _NAMES.items()
    for place, name in enumerate(run.split())
)


def rows_by_id(rows: int) -> tuple[Category, ...]:
    """One class per row of a published COCO head, where the row is the category id; gaps are named after their id."""
    names = {category.id: category.name for category in COCO}
    return tuple(Category(row, names.get(row, f"(unused id {row})")) for row in range(rows))
