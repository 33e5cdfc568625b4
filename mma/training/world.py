"""The processes of one training: who computes which rows, and how a loss is taken on the whole batch by all of them.

PAPER.md, "Several workers" [ours]: each process runs its rows of the global batch, gathers what the loss needs through
`gather_rows`, and takes the loss of the whole batch. N processes and one then give the same gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process's place among `size` equal ones."""

    rank: int = 0
    size: int = 1

    def slice_of(self, count: int, rank: int | None = None) -> slice:
        """The rows of a rank (own by default) among `count`: consecutive, sizes differing by one at most."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def sizes(self, count: int) -> list[int]:
        """Rows of each rank among `count`."""
        slices = [self.slice_of(count, rank) for rank in range(self.size)]
        return [each.stop - each.start for each in slices]

    def gather_objects(self, own: Any) -> list[Any]:
        """The (picklable) object of every rank, in order of rank, on all of them."""
        if self.size == 1:
            return [own]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, own)
        return everyone


def current_world() -> World:
    """The place that `torch.distributed` knows, or a world of one."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def gather_rows(rows: torch.Tensor, world: World, sizes: Sequence[int]) -> torch.Tensor:
    """The rows of all ranks, float (sum(sizes), ...), in order of rank, on all of them; `sizes[world.rank]` are own.

    Backward, a rank's rows get the sum of what all ranks' gradients say of them. Every rank takes the same loss of the
    whole batch, so that is `size` times its gradient; DistributedDataParallel's mean over ranks takes it back.
    """
    if world.size == 1:
        return rows
    return _GatherRows.apply(rows, tuple(sizes), world.rank)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes: tuple[int, ...], rank: int) -> torch.Tensor:
        ctx.first, ctx.count = sum(sizes[:rank]), sizes[rank]
        # Equal shapes: not every back end gathers unequal ones.
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([each[:size] for each, size in zip(everyone, sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.count], None, None
