"""Where ClientApps run: the choices of `conf/engine/`. A new engine is one class with `open` and one YAML."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from flwr.clientapp import ClientApp

from fl.federation.engine.in_process import InProcess
from fl.federation.engine.local import LocalGrid
from fl.federation.engine.ray import Ray
from fl.federation.engine.remote import RemoteGrid

__all__ = ["Engine", "InProcess", "LocalGrid", "Ray", "RemoteGrid"]


class Engine(Protocol):
    """Where ClientApps run."""

    @property
    def reaches_gpu(self) -> bool:
        """Whether a client may use a GPU of this machine."""

    @property
    def abandons_clients(self) -> bool:
        """Whether it can go on without a client that does not answer."""

    def open(
        self, client_app: ClientApp, num_clients: int, states_folder: Path | None = None
    ) -> AbstractContextManager[LocalGrid]:
        """Returns a grid over so many clients that run `client_app`; see `LocalGrid`."""
