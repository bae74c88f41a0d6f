"""How many cores there are for this process; apart from what needs torch, so that doors can ask."""

import os


def available_cores() -> int:
    """Returns how many cores this process may use, which a scheduler can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
