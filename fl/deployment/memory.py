"""The memory that a model file takes, tried in a process of its own."""

import multiprocessing
import re
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fl.core.errors import ModelFileError, QuantflError
from fl.core.machine import compute_with
from fl.core.targets import Target
from fl.deployment.candidates import opened
from fl.deployment.files import deployed

LONGEST_TRIAL_S = 300.0
"""For a model file to be opened and to answer a batch of each size, twice."""

ROOM_BYTES = 4 << 30
"""Of address space for a deployment file and its runtime."""


def peak_memory(
    path: Path, device: str, threads: int, batch_sizes: Sequence[int], network: Target | None = None
) -> dict[int, int | None]:
    """Returns the bytes that a model takes at its peak, by batch size, in a process of its own.

    On the CPU it is resident memory over what the process had before the model was opened (Linux only, else None); for
    a model on CUDA, what torch had allocated there. A deployment file may hang or crash its runtime: nothing but that
    process is lost.

    Raises:
        QuantflError: the model cannot be opened or run.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_send_peaks, args=(there, path, device, threads, sorted(batch_sizes), network), daemon=True
    )
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT}
    )  # Ctrl-C is for this process, which ends that one
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    try:
        if not here.poll(LONGEST_TRIAL_S):
            raise ModelFileError(f"{path}: does not answer within {LONGEST_TRIAL_S} s")
        found = here.recv()
    except EOFError:
        process.join()
        raise ModelFileError(
            f"{path}: its runtime crashes with it (exit code {process.exitcode}); it is damaged, or made for that"
        ) from None
    finally:
        process.kill()
    if isinstance(found, QuantflError):
        raise found
    return dict(found)


def _send_peaks(there: Any, path: Path, *arguments: Any) -> None:
    try:
        there.send(_peaks(path, *arguments))
    except QuantflError as error:
        there.send(error)
    except Exception as error:  # whatever a runtime makes of a file, or of too little memory
        there.send(ModelFileError(f"{path}: cannot be run ({type(error).__name__}: {error})".splitlines()[0]))


def _peaks(
    path: Path, device: str, threads: int, batch_sizes: Sequence[int], network: Target | None
) -> list[tuple[int, int | None]]:
    found = deployed(path)
    if found:
        found[0].check_installed(str(path))  # imports its libraries
    compute_with(threads)
    peaks: list[tuple[int, int | None]] = []
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        if found:
            bound = _resident_bytes("VmSize") + ROOM_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    before = _resident_bytes("VmRSS")
    model = opened(path, torch.device(device), threads, network)
    images = model.architecture.blank(max(batch_sizes))
    with torch.inference_mode():
        for size in batch_sizes:
            for _ in range(2):
                model.run(images[:size])
            if model.device == "cuda":
                peaks.append((size, torch.cuda.max_memory_allocated()))
            else:
                peaks.append((size, _resident_bytes("VmHWM") - before if sys.platform == "linux" else None))
    return peaks


def _resident_bytes(field: str) -> int:
    """Returns a field of proc(5)'s status, 0 where there is none."""
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0
