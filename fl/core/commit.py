"""Which code a run was made with."""

import subprocess
from pathlib import Path

import fl

LONGEST_S = 10


def code_commit() -> str | None:
    """Returns the commit of the checkout that this code lies in, ending in "-dirty" where files differ from it.

    None outside of a checkout, and where git does not tell.
    """
    root = Path(fl.__file__).parents[1]
    if not (root / ".git").exists():  # git would look further up
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONGEST_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
