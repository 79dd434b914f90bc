"""Write the averaged weights of a checkpoint into the package: ``export.py [--config FILE]``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from densemble.priors.embedded import WEIGHTS
from densemble.priors.weights import save_network
from densemble.priors.whole_chain import CHAIN_WEIGHTS
from segment_task import SegmentTask
from train import ROOT, TrainingConfig


def export(config: TrainingConfig, checkpoint: Path, path: Path) -> dict[str, str]:
    """Write ``path`` in half precision; returns the facts that go with it."""
    state = torch.load(checkpoint, weights_only=True)
    network = config.task.make()
    network.load_state_dict(state["average"])
    facts = {
        "licence": "Apache-2.0",
        "steps": str(state["step"]),
        "examples": str(state["examples"]),
        "seconds": f"{state['seconds']:.0f}",
    }
    save_network(network, path, facts=facts)
    return facts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("segments.toml"))
    parser.add_argument("--checkpoint", type=Path, help="last.pt of the config's folder if not given")
    parser.add_argument("--out", type=Path, help="the package's own file if not given")
    args = parser.parse_args()
    config = TrainingConfig.read(args.config)
    own = WEIGHTS if isinstance(config.task, SegmentTask) else CHAIN_WEIGHTS
    print(export(config, args.checkpoint or ROOT / config.out / "last.pt", args.out or own))


if __name__ == "__main__":
    main()
