"""The largest value of a function of some tensors, by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ascent:
    """What came out.

    Attributes:
        best: the tensors under which the value was largest of all evaluations.
        before: the value at the start.
        after: that of ``best``; never below ``before``.
        evaluations: of the value with its gradient.
    """

    best: list[Tensor]
    before: float
    after: float
    evaluations: int


def ascend(start: Sequence[Tensor], value: Callable[..., Tensor], *, evaluations: int) -> Ascent:
    """Maximise a value by L-BFGS with a strong-Wolfe line search.

    Args:
        start: tensors to start from; left as they are.
        value: of these, in this order, to a scalar; differentiable.
        evaluations: at most; the line search under way is finished (up to 25 more).
    """
    variables = [x.detach().clone().requires_grad_(True) for x in start]
    best, best_value = [x.detach().clone() for x in variables], -float("inf")
    first, count = float("nan"), 0
    optimizer = torch.optim.LBFGS(
        variables, max_iter=evaluations, max_eval=evaluations, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        nonlocal best, best_value, first, count
        optimizer.zero_grad()
        found = value(*variables)
        (-found).backward()
        first = float(found.detach()) if count == 0 else first
        count += 1
        if float(found.detach()) > best_value:
            best, best_value = [x.detach().clone() for x in variables], float(found.detach())
        return -found.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    return Ascent(best, first, best_value, count)
