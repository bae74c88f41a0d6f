"""Where ClientApps run."""

from fl.engine.in_process import InProcessGrid

__all__ = ["InProcessGrid"]
