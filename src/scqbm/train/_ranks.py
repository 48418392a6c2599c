"""What the processes of a training on several devices share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def from_first_rank(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, in all of them; an error there ends all.

    The value is pickled, so it should hold tensors of the CPU only.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return make()
    box: list = [None, None]
    if distributed.get_rank() == 0:
        try:
            box[0] = make()
        except Exception as error:
            box[1] = error
    distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]
