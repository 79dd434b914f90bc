"""How much work one evaluation of the density kernel is."""

from jaxtyping import Float
from torch import Tensor

from densemble.forward.kernel import CUTOFF, _Plan
from densemble.grid import Grid


def count_operations(
    grid: Grid,
    coords: Float[Tensor, "m 3"],
    amplitude: Float[Tensor, "m j"],
    alpha: Float[Tensor, "m j"],
) -> dict[str, int]:
    """What ``gaussian_density`` does, forward and backward to the coordinates.

    Returns:
        ``product_flops``: of the three matrix products, two a multiplication and addition;
        ``other_flops``: of the faces, made twice, their products with planes, and two sums over these;
        ``exponentials``; ``window_bytes``: of the windows added and read; ``leaves``; ``batches``.
    """
    plan = _Plan.of(grid, coords[None], amplitude[None], alpha[None], CUTOFF)
    n = plan.atoms.shape[1] * amplitude.shape[1]
    windows = [(len(b.first), *b.shape) for b in plan.batches]
    return {
        "product_flops": sum(6 * n * leaves * wx * wy * wz for leaves, wx, wy, wz in windows),
        "other_flops": sum(5 * n * leaves * wy * wz for leaves, _, wy, wz in windows),
        "exponentials": sum(2 * n * leaves * (wx + wy + wz) for leaves, wx, wy, wz in windows),
        "window_bytes": sum(3 * 4 * leaves * wx * wy * wz for leaves, wx, wy, wz in windows),
        "leaves": len(plan.atoms),
        "batches": len(plan.batches),
    }
