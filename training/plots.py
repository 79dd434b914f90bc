"""Figures as PNG (needs matplotlib).

``python training/plots.py curves RUN_FOLDER OUT.png`` draws the training curves, ``python training/plots.py
calibration EVALUATION.json OUT.png`` what ``evaluate.py`` found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def curves(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``train.csv`` and ``validation.csv`` as record arrays."""
    names = ("train.csv", "validation.csv")
    train, validation = (np.atleast_1d(np.genfromtxt(folder / n, delimiter=",", names=True)) for n in names)
    return train, validation


def plot_curves(folder: Path, out: Path) -> None:
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


def plot_calibration(evaluation: Path, out: Path) -> None:
    """Denoising error against noise, rank histogram, and RMSD against length, side by side."""
    result = json.loads(evaluation.read_text())
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    denoising(axes[0], result)
    ranks(axes[1], result)
    lengths(axes[2], result)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def denoising(axis: Axes, result: dict) -> None:
    """Error per coordinate of one denoising against sigma; the closed form where it was measured."""
    for key, label in (
        ("denoising_rmse", "embedded prior"),
        ("denoising_rmse_closed_form", "closed form"),
    ):
        if key in result:
            sigma, error = zip(*((float(s), e) for s, e in result[key].items()), strict=True)
            axis.plot(sigma, error, "o-", label=label)
    axis.plot(sigma, sigma, ":", color="0.6", label="noise as it came")
    axis.set(xlabel="sigma (Å)", ylabel="error per coordinate (Å)", xscale="log", yscale="log")
    axis.set_title("denoising, all 8")
    axis.legend(frameon=False)


def pooled_ranks(result: dict, kind: str) -> np.ndarray:
    """Rank histogram of all lengths together, as fractions."""
    counts = np.sum([row["rank_histogram"] for row in result["segments"][kind].values()], axis=0)
    return counts / counts.sum()


def ranks(axis: Axes, result: dict) -> None:
    """Rank of the true distances among the members'; flat if the spread is right."""
    for shift, kind in ((-0.2, "all"), (0.2, "loop")):
        fraction = pooled_ranks(result, kind)
        axis.bar(np.arange(len(fraction)) + shift, fraction, width=0.4, label=kind)
    axis.axhline(1 / len(fraction), color="0.4", lw=1, ls=":")
    axis.set(xlabel=f"rank among {len(fraction) - 1} members", ylabel="fraction")
    axis.set_title("CA distances to the middle residue")
    axis.legend(frameon=False)


def lengths(axis: Axes, result: dict) -> None:
    """Median RMSD of single members and of the best, against length."""
    best = f"best{result['sampling']['members']}_median"
    for colour, (kind, rows) in zip(("C0", "C1"), result["segments"].items(), strict=True):
        length = [int(n) for n in rows]
        for name, style in (("single_median", "o-"), (best, "s--")):
            label = f"{kind}, {'single' if name == 'single_median' else name.removesuffix('_median')}"
            axis.plot(length, [row[name] for row in rows.values()], style, color=colour, label=label)
    count = {row["segments"] for rows in result["segments"].values() for row in rows.values()}
    axis.set(xlabel="residues", ylabel="median backbone RMSD (Å)", xticks=length, ylim=(0, None))
    axis.set_title(f"{' or '.join(map(str, sorted(count)))} segments a point, unguided")
    axis.legend(frameon=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=("curves", "calibration"))
    parser.add_argument("source", type=Path, help="run folder, or JSON of evaluate.py")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    {"curves": plot_curves, "calibration": plot_calibration}[args.figure](args.source, args.out)


if __name__ == "__main__":
    main()
