"""What the benchmarks share: the machine and its roofline, the clock, the peak of memory, and the JSON.

With one thread, time is of the processor, which other work on the machine does not lengthen so much. With
several it is of the wall, for a processor's clock adds threads up, and so it is on a GPU, whose queue is
empty whenever the clock is read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

CPU = torch.device("cpu")
REPEATS = 3
"""Of which the least time counts, of every way alike."""
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}
SIZES = {"cpu": (1024, 16_000_000), "cuda": (8192, 256_000_000)}
"""Edge of the matrices and numbers in the copy by which a device's rates are measured: beyond its caches."""

Found = TypeVar("Found")


def clock(device: torch.device = CPU) -> str:
    """Which clock times are of: ``processor`` or ``wall``."""
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(task: Callable[[], Found], device: torch.device = CPU) -> tuple[float, Found]:
    """Seconds of one run, and what it gave."""
    now = CLOCKS[clock(device)]
    synchronize(device)
    begin = now()
    found = task()
    synchronize(device)
    return now() - begin, found


def seconds(task: Callable[[], object], device: torch.device = CPU) -> float:
    """Of one run."""
    return timed(task, device)[0]


def least(task: Callable[[], object], repeats: int = REPEATS, device: torch.device = CPU) -> float:
    """Seconds of the shortest of some runs."""
    return min(seconds(task, device) for _ in range(repeats))


def reset_peak(device: torch.device = CPU) -> None:
    """Begin anew to look for the peak of a GPU's memory; that of a process cannot be taken back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device = CPU) -> int:
    """Of a GPU's tensors since ``reset_peak``; on the CPU, of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def roofline(device: torch.device = CPU) -> dict[str, float]:
    """Rate of a large matrix product, and of a copy in memory, single precision, on a device."""
    edge, numbers = SIZES[device.type]
    a, x = torch.rand(edge, edge, device=device), torch.rand(numbers, device=device)
    product, copy = torch.empty_like(a), torch.empty_like(x)
    torch.mm(a, a, out=product)
    return {
        "matrix_product_flops": 2 * edge**3 / least(lambda: torch.mm(a, a, out=product), 9, device),
        "memory_bytes_per_s": 2 * 4 * numbers / least(lambda: copy.copy_(x), 9, device),
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: torch.device = CPU) -> dict[str, object]:
    """What figures were measured on, and how."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": names[0] if names else platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "clock": clock(device),
        "load_before": os.getloadavg()[0],
    }


def parser_of(document: str | None, *, threads: int = 1) -> argparse.ArgumentParser:
    """With what every benchmark takes: how many threads, and a file for the figures."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser


def begin(benchmark: str, threads: int, device: torch.device = CPU) -> dict[str, Any]:
    """Take so many threads, and print on what is measured and how fast that could be.

    Returns:
        What was printed, to which the figures are added.

    Raises:
        SystemExit: the process may not use so many cores.
    """
    if not 1 <= threads <= usable_cores():
        raise SystemExit(f"--threads {threads}: this process may use {usable_cores()} core(s)")
    torch.set_num_threads(threads)
    result = {"benchmark": benchmark, **machine(device), **roofline(device)}
    show(result)
    print(flush=True)
    return result


def show(figures: Mapping[str, object]) -> None:
    """Print figures, one a line."""
    for name, value in figures.items():
        print(f"{name:38s}{value:.4g}" if isinstance(value, float) else f"{name:38s}{value}")


def write(result: Mapping[str, object], path: Path | None) -> None:
    """The figures as JSON, where a file was named."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**result, "load_after": os.getloadavg()[0]}, indent=1) + "\n")
