"""`python -m fl.sweep`, as job scripts have it: `python -m fl sweep`."""

from fl.__main__ import door

door("sweep", __name__)  # old door
