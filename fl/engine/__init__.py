"""Where ClientApps run: the choices of `conf/engine/`. A new engine is one class with `open` and one YAML."""

from fl.engine.in_process import InProcess
from fl.engine.local import LocalGrid
from fl.engine.ray import Ray
from fl.engine.remote import RemoteGrid

__all__ = ["InProcess", "LocalGrid", "Ray", "RemoteGrid"]
