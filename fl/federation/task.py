"""One run, as its server is given it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import SkipValidation, StrictBool
from pydantic.dataclasses import dataclass as group

from fl.communication.link import Link
from fl.communication.plan import Plan
from fl.communication.planes import Rings
from fl.core.groups import STRICT, Positive
from fl.core.targets import Target
from fl.data.split import Split
from fl.federation.clock_settings import ClockSettings
from fl.federation.codecs import Codecs
from fl.federation.kept_models import CheckpointSettings
from fl.federation.rounds import RoundSettings
from fl.training.compute import ComputeSettings
from fl.training.start import Start

ServerModel = Literal["exact", "reference"]


@group(frozen=True, config=STRICT)
class ServerSettings:
    """What the server obeys beside its rounds.

    Attributes:
        strategy: one of Flower's.
        server_model: which model is tested and saved.
        link: what the run's traffic is priced over.
        time_limit_min: no round starts later than this after the first; None for no limit.
        checkpoint: models of which rounds stay, for `quantfl export`.
        report: a page of the run is written in the end.
    """

    strategy: Target
    server_model: ServerModel
    link: SkipValidation[Link]
    time_limit_min: Positive | None
    checkpoint: CheckpointSettings = CheckpointSettings()
    report: StrictBool = True


@dataclass(frozen=True)
class ServerTask:
    """One run, as its server is given it.

    Attributes:
        run_dir: where everything is written; absolute.
        images_folder: of the image cache.
        split: which images test and validate.
        device: "cpu" or "cuda".
        arithmetic: in what clients compute, for the summary.
        config: the resolved configuration, to be written down and held against that of a run which is resumed.
        rounds: see `RoundSettings`.
        server: see `ServerSettings`.
        compute: threads, and half precision or not while evaluating.
        codecs: of both directions.
        start: the network, and its first weights.
        clock: see `ClockSettings`.
        train_s: how long each client trains in simulated time, where contacts drive the run.
        plan: whose contacts are those of the server's link, where a constellation was given.
        rings: the satellites of each plane, where they pass models on.
    """

    run_dir: Path
    images_folder: Path
    split: Split
    device: str
    arithmetic: str
    config: Mapping[str, Any]
    rounds: RoundSettings
    server: ServerSettings
    compute: ComputeSettings
    codecs: Codecs
    start: Start
    clock: ClockSettings = field(default_factory=ClockSettings)
    train_s: Sequence[float] = ()
    plan: Plan | None = None
    rings: Rings = ()
