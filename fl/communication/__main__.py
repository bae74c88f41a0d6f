"""`python -m fl.communication`, as job scripts have it: `python -m fl communication`."""

from fl.__main__ import door

door("communication", __name__)  # old door
