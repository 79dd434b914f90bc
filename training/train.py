"""Train the segment network of the embedded prior: ``python training/train.py [--config FILE]``.

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
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from corpus import Corpus, load, read_excluded
from densemble.priors.segment_geometry import Segment
from densemble.priors.segment_network import NetworkConfig, SegmentNetwork
from examples import Batch, random_batch, random_length

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class TrainingConfig:
    """What ``segments.toml`` says."""

    corpus: str
    excluded: str
    out: str
    seed: int
    steps: int
    decay: int
    warmup: int
    processes: int
    tokens: int
    copies: int
    lr_muon: float
    lr_adam: float
    weight_decay: float
    ema: float
    geometry: float
    terminal: float
    hide: float
    validate_every: int
    checkpoint_seconds: float
    network: NetworkConfig = field(default_factory=NetworkConfig)

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """Read the TOML file."""
        values = tomllib.loads(path.read_text())
        network = values.pop("network")
        network["stages"] = tuple(network["stages"])
        return cls(**values, network=NetworkConfig(**network))

    def rate(self, step: int) -> float:
        """Factor on the learning rates: warm-up, constant, linear decay to zero."""
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / self.decay))


def local_distances(x: Tensor, segment: Segment) -> Tensor:
    """Distances between all atoms of neighbouring residues, anchors included, shape=(b, c, l + 1, 28)."""
    b, c = x.shape[:2]
    ends = segment.anchors[:, None].expand(b, c, 2, 4, 3)
    chain = torch.cat([ends[:, :, :1], x, ends[:, :, 1:]], dim=2)
    both = torch.cat([chain[:, :, :-1], chain[:, :, 1:]], dim=-2)
    i, j = torch.triu_indices(8, 8, offset=1)
    return torch.sqrt(((both[..., i, :] - both[..., j, :]) ** 2).sum(-1) + 1e-6)


def loss_terms(estimates: list[Tensor], batch: Batch) -> dict[str, Tensor]:
    """Denoising error of every stage, and the last one's local distances at low noise.

    Both are in units of the EDM output scale, so that every noise level counts alike. Local
    distances of the posterior mean are only those of a chain when little noise is left: their
    weight falls as 1 / (1 + (sigma / 0.5 Å)^2)^2.
    """
    sigma = batch.sigma[:, :, None, None]
    width = batch.segment.width[:, None]
    scale = sigma * width / torch.sqrt(sigma**2 + width**2)
    terms = {}
    for i, estimate in enumerate(estimates):
        error = ((estimate - batch.truth[:, None]) / scale[..., None]) ** 2
        terms[f"stage{i}"] = error.mean((2, 3, 4))
    found = local_distances(estimates[-1], batch.segment)
    truth = local_distances(batch.truth[:, None], batch.segment)
    there = torch.ones(found.shape[0], 1, found.shape[2], 1)
    there[:, 0, 0, 0], there[:, 0, -1, 0] = batch.segment.anchored.float().unbind(1)
    error = torch.nn.functional.smooth_l1_loss(
        found / sigma, truth.expand_as(found) / sigma, reduction="none"
    )
    fade = 1 / (1 + (batch.sigma / 0.5) ** 2) ** 2
    terms["geometry"] = (error * there).mean((2, 3)) * fade
    return terms


def total_loss(terms: dict[str, Tensor], geometry: float) -> Tensor:
    """Weighted sum: the last stage in full, earlier ones a quarter."""
    stages = [terms[k].mean() for k in sorted(terms) if k.startswith("stage")]
    return stages[-1] + 0.25 * sum(stages[:-1]) + geometry * terms["geometry"].mean()


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices of the transformer layers (Muon), and everything else (Adam)."""
    hidden, other = [], []
    for name, p in network.named_parameters():
        is_hidden = any(f".{k}.weight" in name for k in ("qkv", "out", "up", "down")) and ".layers." in name
        (hidden if is_hidden else other).append(p)
    return hidden, other


class Trainer:
    """State of a run: network, averaged weights, optimizers, step."""

    def __init__(self, config: TrainingConfig, corpus: Corpus, rank: int = 0) -> None:
        torch.manual_seed(config.seed)
        self.config, self.corpus, self.rank, self.step = config, corpus, rank, 0
        self.network = SegmentNetwork(config.network)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.hidden, other = split_parameters(self.network)
        mine = self.hidden[rank :: config.processes]
        self.optimizers = [
            torch.optim.Muon(mine, lr=config.lr_muon, weight_decay=config.weight_decay, ns_steps=5),
            torch.optim.AdamW(other, lr=config.lr_adam, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [config.lr_muon, config.lr_adam]
        self.chains = corpus.chosen(validation=False, excluded=read_excluded(ROOT / config.excluded))
        self.seconds = 0.0
        self.examples = 0

    def batch(self, step: int) -> Batch:
        """This process's batch of one step; all processes have the same length of segment."""
        c = self.config
        length = random_length(np.random.default_rng([c.seed, step]))
        rng = np.random.default_rng([c.seed, step, self.rank])
        return random_batch(
            self.corpus,
            self.chains,
            tokens=c.tokens,
            copies=c.copies,
            terminal=c.terminal,
            hide=c.hide,
            rng=rng,
            length=length,
        )

    def advance(self) -> dict[str, float]:
        """One optimizer step; returns the mean of every term of the loss."""
        start = time.perf_counter()
        batch = self.batch(self.step)
        self.network.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = self.network.encode(batch.segment)
            estimates = self.network(batch.noisy, batch.sigma, batch.segment, encoded)
        terms = loss_terms(estimates, batch)
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
        self.examples += batch.sigma.numel() * self.config.processes
        self.seconds += time.perf_counter() - start
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


def validation_batches(config: TrainingConfig, corpus: Corpus) -> list[Batch]:
    """Fixed batches of the validation chains, for the curve."""
    chains = corpus.chosen(validation=True)
    common = {"tokens": config.tokens, "copies": config.copies, "terminal": 0.0, "hide": 0.0}
    return [
        random_batch(corpus, chains, rng=np.random.default_rng([config.seed, 77, n]), length=n, **common)
        for n in (4, 8, 8, 12, 12, 16)
    ]


@torch.no_grad()
def validate(trainer: Trainer, batches: list[Batch]) -> dict[str, float]:
    """Mean terms of the averaged network on validation batches."""
    network = SegmentNetwork(trainer.config.network)
    network.load_state_dict(trainer.average)
    network.eval()
    sums: dict[str, list[float]] = {}
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            estimates = network(batch.noisy, batch.sigma, batch.segment, network.encode(batch.segment))
        for name, value in loss_terms(estimates, batch).items():
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
        trainer.restore(torch.load(checkpoint, weights_only=True))
    batches = validation_batches(config, corpus) if rank == 0 else []
    written, sums, n = time.monotonic(), dict[str, float](), 0
    last = config.steps if until is None else min(until, config.steps)
    while trainer.step < last:
        terms = trainer.advance()
        if not math.isfinite(sum(terms.values())):
            raise FloatingPointError(f"the loss is not finite at step {trainer.step}: {terms}")
        sums = {k: sums.get(k, 0.0) + v for k, v in terms.items()}
        n += 1
        if rank == 0 and trainer.step % 50 == 0:
            row = {"step": trainer.step, "seconds": trainer.seconds, "examples": trainer.examples}
            record(out / "train.csv", row | {k: v / n for k, v in sums.items()})
            sums, n = {}, 0
        if rank == 0 and trainer.step % config.validate_every == 0:
            record(out / "validation.csv", {"step": trainer.step} | validate(trainer, batches))
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
