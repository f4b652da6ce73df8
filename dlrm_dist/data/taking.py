"""Rows of columns in another order."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_dist.data.vocabulary import numbers_of


def taken(whole: pa.Array, order: npt.NDArray[np.integer]) -> pa.Array:
    """The rows `order` of a column, of lists without nulls too: arrow's own way with lists takes four times their size.

    Args:
        whole: a column of numbers, or lists of them.
        order: numbers of rows, [n].
    """
    if not pa.types.is_list(whole.type):
        return whole.take(pa.array(order))
    offsets = np.frombuffer(whole.buffers()[1] or bytes(4), np.int32)[whole.offset : whole.offset + len(whole) + 1]
    values = numbers_of(whole.values)
    ends = np.zeros(len(order) + 1, np.int32)
    np.cumsum(np.diff(offsets)[order], out=ends[1:])
    found = np.empty(ends[-1], values.dtype)
    _gather(offsets, values, order, ends, found)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(found), type=whole.type)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _gather(
    offsets: npt.NDArray[np.int32],
    values: npt.NDArray[Any],
    order: npt.NDArray[np.integer],
    ends: npt.NDArray[np.int32],
    found: npt.NDArray[Any],
) -> None:
    """Copy the lists [n] of `order`, which end at `ends`."""
    for i in range(len(order)):
        begin = offsets[order[i]]
        for at in range(ends[i + 1] - ends[i]):
            found[ends[i] + at] = values[begin + at]
