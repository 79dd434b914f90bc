"""Training curves as PNG: ``python training/plots.py RUN_FOLDER OUT.png`` (needs matplotlib)."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt


def curves(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``train.csv`` and ``validation.csv`` as record arrays."""
    names = ("train.csv", "validation.csv")
    train, validation = (np.atleast_1d(np.genfromtxt(folder / n, delimiter=",", names=True)) for n in names)
    return train, validation


def plot(folder: Path, out: Path) -> None:
    """Denoising error (last stage) and local-distance term against noised examples."""
    train, validation = curves(folder)
    examples = np.interp(validation["step"], train["step"], train["examples"]) / 1e6
    last = [name for name in train.dtype.names if name.startswith("stage")][-1]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), constrained_layout=True)
    for axis, name, title in zip(
        axes, (last, "geometry"), ("denoising error", "local distances"), strict=True
    ):
        axis.plot(train["examples"] / 1e6, train[name], color="0.6", label="training")
        axis.plot(examples, validation[name], "o-", color="C0", label="validation, averaged weights")
        axis.set(xlabel="million noised examples", ylabel=f"{title} (EDM units)", yscale="log")
        axis.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    plot(args.folder, args.out)


if __name__ == "__main__":
    main()
