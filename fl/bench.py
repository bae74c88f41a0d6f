"""`python -m fl.bench`, as job scripts have it: `python -m fl bench`."""

from fl.__main__ import door

door("bench", __name__)  # old door
