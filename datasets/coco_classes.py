"""COCO's classes by category id (Lin et al. 2014). The ids have gaps; published heads have a row for every id.

The 53 classes of stuff are those of the panoptic task (Kirillov et al. 2019); their ids follow those of the 80 things.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .annotations import Category

_THINGS = {
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
_STUFF = {
    92: "banner blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform playingfield",
    147: "railroad river road",
    151: "roof",
    154: "sand sea shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone wall-tile wall-wood water-other",
    180: "window-blind window-other",
    184: "tree-merged fence-merged ceiling-merged sky-other-merged cabinet-merged table-merged floor-other-merged",
    191: "pavement-merged mountain-merged grass-merged dirt-merged paper-merged food-other-merged",
    197: "building-other-merged rock-merged wall-other-merged rug-merged",
}


def _listed(runs: Mapping[int, str]) -> tuple[Category, ...]:
    return tuple(
        Category(first + place, name.replace("_", " "))
        for first, run in runs.items()
        for place, name in enumerate(run.split())
    )


COCO = _listed(_THINGS)
PANOPTIC = COCO + _listed(_STUFF)


def unused(row: int) -> str:
    """What a row is called that belongs to no class."""
    return f"(unused id {row})"


def is_unused(name: str) -> bool:
    """Whether a class name is `unused`'s."""
    return name.startswith("(unused id ")


def rows_by_id(rows: int, classes: Iterable[Category] = COCO) -> tuple[Category, ...]:
    """One class per row of a published head, where the row is the category id; gaps are named after their id."""
    names = {category.id: category.name for category in classes}
    return tuple(Category(row, names.get(row, unused(row))) for row in range(rows))
