"""The assignment problem by shortest augmenting paths, one program for each problem, in Triton.

The algorithm is that of Jonker and Volgenant (1987), as Crouse (2016, "On implementing 2D rectangular assignment
algorithms") has it for rectangles: rows are added one by one, each along a shortest path, over reduced costs, to a
column that is free. Rows need no prices: that of a row with a column follows from the pair's reduced cost, which is 0.
All state is in registers, a value for each column, and one column's is read and written by masks, so that nothing
depends on when a warp sees what another has written to memory. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NONE = tl.constexpr(2**31 - 1)


@triton.jit
def _nearest(
    distance: tl.tensor, open_: tl.tensor, row_of: tl.tensor, column: tl.tensor, COLUMNS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The least distance of an open column, and (its row + 1) * COLUMNS + its place; free ones come first."""
    least = tl.min(tl.where(open_, distance, float("inf")), axis=0)
    key = (row_of + 1) * COLUMNS + column
    return least, tl.min(tl.where(open_ & (distance == least), key, _NONE), axis=0)


@triton.jit
def _search(
    costs: tl.tensor,
    by_row: tl.tensor,
    cost: tl.tensor,
    there: tl.tensor,
    price: tl.tensor,
    row_of: tl.tensor,
    column: tl.tensor,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The shortest path from a new row, whose costs these are, to a free column.

    Returns that column's place (more where none is free), the place before each column on its path (-1: the new row),
    and the columns' new prices.
    """
    distance = cost.to(tl.float64) - price
    before = tl.full((COLUMNS,), -1, tl.int32)
    open_ = there
    least, key = _nearest(distance, open_, row_of, column, COLUMNS)
    # While the nearest has a row, that row may take another: each time one more column is closed.
    while (key >= COLUMNS) & (key < _NONE):
        place = key % COLUMNS
        open_ = open_ & (column != place)
        cost = tl.load(costs + (key // COLUMNS - 1) * by_row, mask=there, other=0.0)
        reduced = cost.to(tl.float64) - price
        reduced = least + (reduced - tl.sum(tl.where(column == place, reduced, 0.0), axis=0))
        nearer = open_ & (reduced < distance)
        distance = tl.where(nearer, reduced, distance)
        before = tl.where(nearer, place, before)
        least, key = _nearest(distance, open_, row_of, column, COLUMNS)
    return key, before, price + tl.where(open_, 0.0, distance - least)


@triton.jit
def _shift(new: tl.tensor, place: tl.tensor, before: tl.tensor, row_of: tl.tensor, column: tl.tensor) -> tl.tensor:
    """Along the path, each column takes over the row of the one before it, and the first takes the new row."""
    while place >= 0:
        giver = tl.sum(tl.where(column == place, before, 0), axis=0)
        row = tl.sum(tl.where(column == giver, row_of, 0), axis=0)
        row_of = tl.where(column == place, tl.where(giver >= 0, row, new), row_of)
        place = giver
    return row_of


@triton.jit(do_not_specialize=["images", "queries", "slots"])
def _assign(
    costs: tl.tensor,
    valid: tl.tensor,
    matches: tl.tensor,
    images: tl.tensor,
    queries: tl.tensor,
    slots: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """costs: [D, B, T, Q]; valid: [B, T] uint8; matches: [D, B, T], -1 everywhere; COLUMNS: not less than T and Q."""
    problem = tl.program_id(0).to(tl.int64)
    matches += problem * slots
    column = tl.arange(0, COLUMNS)
    filled = tl.load(valid + problem % images * slots + column, mask=column < slots, other=0)
    objects = tl.sum(filled.to(tl.int32), axis=0)
    # Every row gets a column, so rows are whatever is fewer.
    crowded = objects > queries
    rows = tl.minimum(objects, queries)
    there = column < tl.maximum(objects, queries)
    by_row, by_column = tl.where(crowded, 1, queries), tl.where(crowded, queries, 1)
    costs += problem * slots * queries + column * by_column
    price = tl.zeros((COLUMNS,), tl.float64)
    row_of = tl.full((COLUMNS,), -1, tl.int32)
    new = 0
    while new < rows:
        cost = tl.load(costs + new * by_row, mask=there, other=0.0)
        # Of a problem with NaN or Inf nothing is assigned; no loop lasts longer for it.
        rows = tl.where(tl.sum((tl.abs(cost) < float("inf")).to(tl.int32), axis=0) == COLUMNS, rows, 0)
        key, before, price = _search(costs, by_row, cost, there, price, row_of, column, COLUMNS)
        row_of = _shift(new, key % COLUMNS, before, row_of, column)
        new += 1
    slot, query = tl.where(crowded, column, row_of), tl.where(crowded, row_of, column)
    tl.store(matches + slot, query.to(tl.int64), mask=(row_of >= 0) & (rows > 0))


def assign(costs: Tensor, valid: Tensor) -> Tensor:
    """[D, B, T] int64: the query of each object at the least total cost of its layer and image, -1 where there is none.

    costs: [D, B, Q, T] float32; valid: [B, T] bool, each image's objects in its first slots. Exact but for rounding of
    float64. An image with more objects than queries has as many matches as queries, one with NaN or Inf among the costs
    of a match has none. Nothing waits for the device; one kernel serves all shapes whose larger of Q and T is rounded
    up to the same power of two.
    """
    layers, images, queries, slots = costs.shape
    matches = torch.full((layers, images, slots), -1, dtype=torch.int64, device=costs.device)
    if matches.numel() and queries:
        columns = triton.next_power_of_2(max(queries, slots))
        with torch.cuda.device_of(costs):
            _assign[(layers * images,)](
                # So that what a row reads lies side by side.
                costs.transpose(2, 3).contiguous(),
                valid.contiguous().view(torch.uint8),
                matches,
                images,
                queries,
                slots,
                COLUMNS=columns,
                num_warps=min(max(columns // 128, 1), 8),
            )
    return matches
