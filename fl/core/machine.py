"""What a run was made with: versions and hardware, as recorded beside every result."""

import ctypes
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import fl
from fl.core.commit import code_commit
from fl.core.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""

PACKAGES = ("torch", "flwr", "flwr-datasets", "hydra-core", "numpy", "pillow")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Returns versions and hardware.

    Args:
        device: "cpu" or "cuda".
        threads: that torch computes with.
    """
    return {
        "quantfl": fl.__version__,
        "commit": code_commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def compute_with(threads: int) -> None:
    """Sets how many threads torch computes with, and makes glibc keep freed memory for the next batch.

    Otherwise every batch's activations go back to the system and are mapped and zeroed again, page by page.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_of(name: str) -> torch.device:
    """Returns the device that `--device` means.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
