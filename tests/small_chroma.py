"""Chroma's own classes at reduced size, with random weights: its real weights are not at hand.

Import it only after ``pytest.importorskip("chroma", ...)``.
"""

from pathlib import Path

import torch

from densemble.priors.chroma.networks import BACKBONE, DESIGN, Kind, new_network
from densemble.recipes import load_recipe
from densemble.recipes.writing import toml_text

SIZES = {"dim_nodes": 16, "dim_edges": 16, "num_neighbors": 12, "num_layers": 2}
BACKBONE_SIZES = SIZES | {"noise_covariance_model": "globular", "noise_complex_scaling": True}


def small_backbone(seed: int = 0, **changes):
    """The denoiser, in evaluation mode."""
    torch.manual_seed(seed)
    return new_network(BACKBONE, **BACKBONE_SIZES | changes).eval().requires_grad_(False)


def small_design(seed: int = 0, **changes):
    """The packer, in evaluation mode."""
    torch.manual_seed(seed)
    return new_network(DESIGN, **SIZES | changes).eval().requires_grad_(False)


def write_weights(folder: Path) -> dict[Kind, Path]:
    """Both networks in files, as Chroma itself saves them."""
    from chroma.utility.model import save_model

    paths = {BACKBONE: folder / "backbone.pt", DESIGN: folder / "design.pt"}
    for kind, network in ((BACKBONE, small_backbone()), (DESIGN, small_design())):
        save_model(network, str(paths[kind]))
    return paths


def write_quick_recipe(path: Path, **changes: dict) -> Path:
    """Paper 1's recipe on a coarser grid, with side chains drawn every 8 steps and 2 gradient steps between.

    Args:
        path: ends in ``.toml``.
        changes: by part, keys and values.
    """
    recipe = load_recipe("chroma-2024").model_dump(exclude_none=True)
    quick = {
        "density": {"margin": 5.0, "spacing": 1.0, "reach": 4.0},
        "sidechains": {"resample_every": 8, "gradient_steps": 2},
    }
    for own in (quick, changes):
        for name, part in own.items():
            recipe[name] = recipe.get(name, {}) | part if isinstance(part, dict) else part
    path.write_text(toml_text(recipe), encoding="utf-8")
    return path
