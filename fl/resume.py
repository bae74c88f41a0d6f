"""`python -m fl.resume`, as job scripts have it: `python -m fl resume`."""

from fl.__main__ import door

door("resume", __name__)  # old door
