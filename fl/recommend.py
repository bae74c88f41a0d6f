"""`python -m fl.recommend`, as job scripts have it: `python -m fl recommend`."""

from fl.__main__ import door

door("recommend", __name__)  # old door
