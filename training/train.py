"""Train a network of the embedded prior: ``python training/train.py [--config FILE]``.

Deterministic given the seed (every step and process draws from its own generator), and resumable:
weights, averaged weights, optimizers and step are written together, by renaming a finished file.

On CPUs several processes of one thread each, with averaged gradients, are faster than one process
of several threads; each updates its share of the hidden matrices.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from batches import batches, moved
from chain_task import ChainTask
from corpus import Corpus, load, read_excluded
from densemble.priors.chain_network import ChainNetworkConfig
from densemble.priors.segment_network import NetworkConfig
from losses import total_loss
from segment_task import SegmentTask

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
Task = SegmentTask | ChainTask
TASKS = {
    "segments": (SegmentTask, NetworkConfig),
    "chains": (ChainTask, ChainNetworkConfig),
}


@dataclass(frozen=True)
class TrainingConfig:
    """What a configuration file says: ``segments.toml``, ``chains.toml``.

    Attributes:
        corpus: of backbones, from the repository's root.
        excluded: list of chains that are left out, from the repository's root.
        out: folder of checkpoints and curves, from the repository's root.
        seed: of all randomness.
        steps: optimizer steps in all.
        decay: last steps, over which the learning rates fall to zero linearly.
        warmup: first steps, over which they rise.
        device: where the network is: ``cpu``, or ``cuda`` with one process.
        processes: of one thread each.
        workers: further processes that build each one's batches; 0 builds them in line.
        precision: of matrix products.
        lr_muon: hidden matrices of the layers.
        lr_adam: everything else.
        weight_decay: of the hidden matrices.
        ema: decay of the averaged weights.
        geometry: weight of the local-distance term.
        validate_every: steps.
        checkpoint_seconds: between checkpoints.
        task: the network and its examples.
        initial: weights to start from, from the repository's root; random ones if left out.
        fraction: of the chains; the others are left out too, drawn by the seed.
    """

    corpus: str
    excluded: str
    out: str
    seed: int
    steps: int
    decay: int
    warmup: int
    device: str
    processes: int
    workers: int
    precision: Literal["bfloat16", "float32"]
    lr_muon: float
    lr_adam: float
    weight_decay: float
    ema: float
    geometry: float
    validate_every: int
    checkpoint_seconds: float
    task: Task
    initial: str | None = None
    fraction: float = 1.0

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """Read the TOML file."""
        values = tomllib.loads(path.read_text())
        examples, network = values.pop("examples"), values.pop("network")
        task, sizes = TASKS[values.pop("task")]
        network["stages"] = tuple(network["stages"])
        return cls(**values, task=task(**examples, network=sizes(**network)))

    def rate(self, step: int) -> float:
        """Factor on the learning rates: warm-up, constant, linear decay to zero."""
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / self.decay))

    def half(self) -> torch.autocast:
        """Context of the network's matrix products."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices of the transformer layers (Muon), and everything else (Adam)."""
    hidden, other = [], []
    for name, p in network.named_parameters():
        inside = ".layers." in name or ".blocks." in name
        is_hidden = inside and any(f".{k}.weight" in name for k in ("qkv", "out", "up", "down"))
        (hidden if is_hidden else other).append(p)
    return hidden, other


class Trainer:
    """State of a run: network, averaged weights, optimizers, step."""

    def __init__(self, config: TrainingConfig, corpus: Corpus, rank: int = 0) -> None:
        torch.manual_seed(config.seed)
        self.config, self.corpus, self.rank, self.step = config, corpus, rank, 0
        self.network = config.task.make()
        if config.initial is not None:
            self.network.load_state_dict(load_file(ROOT / config.initial))
        self.device = torch.device(config.device)
        self.network.to(self.device)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.hidden, other = split_parameters(self.network)
        mine = self.hidden[rank :: config.processes]
        self.optimizers = [
            torch.optim.Muon(mine, lr=config.lr_muon, weight_decay=config.weight_decay, ns_steps=5),
            torch.optim.AdamW(other, lr=config.lr_adam, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [config.lr_muon, config.lr_adam]
        chains = corpus.chosen(validation=False, excluded=read_excluded(ROOT / config.excluded))
        mixed = np.random.default_rng(config.seed).permutation(chains)
        self.chains = np.sort(mixed[: round(config.fraction * len(chains))])
        self.seconds = 0.0
        self.examples = 0

    def batch(self, step: int) -> Any:  # noqa: ANN401
        """This process's examples of one step."""
        return self.config.task.batch(self.corpus, self.chains, [self.config.seed, step], self.rank)

    def advance(self, batch: Any) -> dict[str, float]:  # noqa: ANN401
        """One optimizer step on ``batch(step)``; returns the mean of every term of the loss."""
        task = self.config.task
        batch = moved(batch, self.device)
        self.network.train()
        with self.config.half():
            estimates = task.estimates(self.network, batch)
        terms = task.terms(estimates, batch)
        total_loss(terms, self.config.geometry).backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self._sum(gradients, 1 / self.config.processes)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 3.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * self.config.rate(self.step)
            optimizer.step()
        self.network.zero_grad(set_to_none=True)
        self._share_hidden()
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        current = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[k] for k in self.average], 1 - decay)
        self.step += 1
        self.examples += len(batch) * self.config.processes
        return {k: float(v.detach().mean()) for k, v in terms.items()} | {"norm": float(norm)}

    @torch.no_grad()
    def _sum(self, tensors: list[Tensor], factor: float) -> None:
        """Sum over processes, in place."""
        if self.config.processes == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors]).mul_(factor)
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def _share_hidden(self) -> None:
        """Each process has updated its share of the hidden matrices; give them to the others."""
        if self.config.processes == 1:
            return
        for i, p in enumerate(self.hidden):
            if i % self.config.processes != self.rank:
                p.zero_()
        self._sum(self.hidden, 1.0)

    def state(self) -> dict[str, object]:
        """Everything that a resumed run needs; all processes must call this together."""
        muon: list[object] = [self.optimizers[0].state_dict()]
        if self.config.processes > 1:
            muon = [None] * self.config.processes
            dist.all_gather_object(muon, self.optimizers[0].state_dict())
        return {
            "network": self.network.state_dict(),
            "average": self.average,
            "muon": muon,
            "adam": self.optimizers[1].state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "examples": self.examples,
        }

    def restore(self, state: dict) -> None:
        """Continue from ``state``; with another number of processes Muon's momentum starts anew."""
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        if len(state["muon"]) == self.config.processes:
            self.optimizers[0].load_state_dict(state["muon"][self.rank])
        self.optimizers[1].load_state_dict(state["adam"])
        self.step, self.seconds, self.examples = state["step"], state["seconds"], state["examples"]


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint so that a kill leaves the old or the new one, never half of one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


@torch.no_grad()
def validate(trainer: Trainer, batches: list[Any]) -> dict[str, float]:
    """Mean terms of the averaged network on validation batches."""
    task = trainer.config.task
    network = task.make().to(trainer.device)
    network.load_state_dict(trainer.average)
    network.eval()
    sums: dict[str, list[float]] = {}
    for batch in (moved(b, trainer.device) for b in batches):
        with trainer.config.half():
            estimates = task.estimates(network, batch)
        for name, value in task.terms(estimates, batch).items():
            sums.setdefault(name, []).append(float(value.mean()))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def record(path: Path, row: dict[str, float]) -> None:
    """Append a row to a CSV curve."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def due(config: TrainingConfig, written: float, rank: int) -> bool:
    """Whether the first process says that it is time for a checkpoint."""
    answer = torch.tensor([float(rank == 0 and time.monotonic() - written > config.checkpoint_seconds)])
    if config.processes > 1:
        dist.all_reduce(answer)
    return bool(answer > 0)


def run(config: TrainingConfig, out: Path, *, rank: int = 0, until: int | None = None) -> Trainer:
    """Train to the end (or to step ``until``), continuing from the last checkpoint in ``out``."""
    corpus = load((ROOT / config.corpus).resolve())
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, corpus, rank)
    checkpoint = out / "last.pt"
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True, map_location=trainer.device))
    fixed = config.task.validation(corpus, config.seed) if rank == 0 else []
    written, sums, n = time.monotonic(), dict[str, float](), 0
    last = config.steps if until is None else min(until, config.steps)
    feed = batches(trainer.batch, trainer.step, last, config.workers)
    while trainer.step < last:
        start = time.perf_counter()
        terms = trainer.advance(next(feed))
        trainer.seconds += time.perf_counter() - start
        if not math.isfinite(sum(terms.values())):
            raise FloatingPointError(f"the loss is not finite at step {trainer.step}: {terms}")
        sums = {k: sums.get(k, 0.0) + v for k, v in terms.items()}
        n += 1
        if rank == 0 and trainer.step % 50 == 0:
            row = {"step": trainer.step, "seconds": trainer.seconds, "examples": trainer.examples}
            record(out / "train.csv", row | {k: v / n for k, v in sums.items()})
            sums, n = {}, 0
        if rank == 0 and trainer.step % config.validate_every == 0:
            record(out / "validation.csv", {"step": trainer.step} | validate(trainer, fixed))
        if trainer.step == last or (trainer.step % 20 == 0 and due(config, written, rank)):
            state = trainer.state()
            if rank == 0:
                save(checkpoint, state)
            written = time.monotonic()
    return trainer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("segments.toml"))
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = TrainingConfig.read(args.config)
    out = ROOT / config.out
    out.mkdir(parents=True, exist_ok=True)
    meeting = out / "meeting"
    others = []
    if args.rank == 0:
        (out.parent / "train.pid").write_text(f"{os.getpid()}\n")
        meeting.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--config", str(args.config)]
        others = [subprocess.Popen([*command, "--rank", str(r)]) for r in range(1, config.processes)]
    torch.set_num_threads(1)
    if config.processes > 1:
        # Hours, as a paused process must not end the run.
        wait = timedelta(hours=12)
        where = {"init_method": f"file://{meeting}", "world_size": config.processes, "rank": args.rank}
        dist.init_process_group("gloo", timeout=wait, **where)
    run(config, out, rank=args.rank)
    for process in others:
        process.wait()
    if config.processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
