"""Chroma's own classes at reduced size, with random weights: its real weights are not at hand.

Import it only after ``pytest.importorskip("chroma", reason=NO_CHROMA)``.
"""

from pathlib import Path

import torch

from densemble.priors.chroma.networks import BACKBONE, DESIGN, Kind, new_network

NO_CHROMA = "generate-chroma is not installed; make chroma"
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
