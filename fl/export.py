"""`python -m fl.export`, as job scripts have it: `python -m fl export`."""

from fl.__main__ import door

door("export", __name__)  # old door
