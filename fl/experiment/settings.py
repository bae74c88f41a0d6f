"""The configuration, checked: every group is declared beside the code that obeys it, and filled here by field name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fl.communication.constellation import Constellation, File, Tle, Walker
from fl.core.errors import ConfigError, counted, suggestion
from fl.core.groups import filled, names_of
from fl.core.output import OF_THE_PROCESS, OutputSettings
from fl.core.targets import Target
from fl.data.settings import DataSettings
from fl.experiment.clock_checks import check_clock
from fl.federation.clock_settings import ClockSettings
from fl.federation.codecs import Codecs
from fl.federation.engine import Engine
from fl.federation.faults import Fault
from fl.federation.rounds import RoundSettings
from fl.federation.strategy import check_strategy
from fl.federation.task import ServerSettings
from fl.models.architecture import NET, Architecture
from fl.tracking import Tracker
from fl.training.compute import ComputeSettings
from fl.training.local import TrainingSettings
from fl.training.start import ModelSettings

BUILT = ("partition", "training", "link", "engine", "policy", "computer")
"""Groups of one class that needs nothing to be built but its settings."""
OPTIONAL = ("broadcast", "update", "faults", "tracking", "constellation")
GROUPS = (RoundSettings, TrainingSettings, ServerSettings, ComputeSettings, ClockSettings)
KNOWN = {"data", "model", *BUILT, *OPTIONAL, *OF_THE_PROCESS, *(name for group in GROUPS for name in names_of(group))}
KNOWN -= {"arithmetic"}
BEFORE = {
    "training": {"_target_": "fl.training.arithmetic.Fp32"},
    "model": {"_target_": NET.target},
    "policy": {"_target_": "fl.communication.policies.Synchronous"},
    "computer": {"_target_": "fl.communication.computer.Computer"},
}
"""What runs had from before there was a choice."""


@dataclass(frozen=True)
class Settings:
    """All of `conf/config.yaml`, checked; `output` is None where it is not told, as in a run folder."""

    data: DataSettings
    partition: Target
    engine: Engine
    rounds: RoundSettings
    training: TrainingSettings
    server: ServerSettings
    compute: ComputeSettings
    codecs: Codecs
    faults: Fault | None
    model: ModelSettings
    tracking: Tracker | None
    output: OutputSettings | None
    clock: ClockSettings
    constellation: Constellation | None


def settings_from(config: Mapping[str, Any], trusted: Collection[str] = ()) -> Settings:
    """Checks a configuration without touching data.

    Args:
        config: resolved, as plain data.
        trusted: `_target_` values the user typed.

    Raises:
        ConfigError: names the argument, its value and what is wrong.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"the settings are {type(config).__name__}, not a mapping of names to values")
    _refuse_unknown(config)
    for name in ("broadcast", "update"):
        if isinstance(config.get(name), str):
            raise ConfigError(f"{name}={config[name]}: a codec is chosen with codec@{name}={config[name]}")
    if not isinstance(config.get("data"), Mapping):
        raise ConfigError(f"data={config.get('data')!r}: must be a mapping with a _target_")
    config = {**BEFORE, **config}
    wanted = (*BUILT, "strategy", "optimizer", *(name for name in OPTIONAL if config.get(name)))
    targets = {name: Target.from_config(name, config.get(name), trusted) for name in wanted}
    built = {}
    for name in BUILT:
        targets[name].check()
        built[name] = targets[name].build()
    values = {**config, **targets, **{name: built[name] for name in ("link", "policy", "computer")}}
    values["arithmetic"] = built["training"]
    settings = Settings(
        data=DataSettings.from_config(config["data"], trusted),
        partition=targets["partition"],
        engine=built["engine"],
        rounds=filled(RoundSettings, values),
        training=filled(TrainingSettings, values),
        server=filled(ServerSettings, values),
        compute=filled(ComputeSettings, values),
        codecs=Codecs.of(targets.get("broadcast"), targets.get("update")),
        faults=_built(targets.get("faults"), Fault),
        model=ModelSettings.from_config(config["model"], trusted),
        tracking=_built(targets.get("tracking"), Tracker),
        output=filled(OutputSettings, config) if any(name in config for name in OF_THE_PROCESS) else None,
        clock=filled(ClockSettings, values),
        constellation=_built(targets.get("constellation"), Walker | Tle | File),
    )
    _check_across(settings)
    return settings


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    if unknown := [key for key in config if key not in KNOWN]:
        hint = suggestion(unknown[0], KNOWN, "; ", "")
        if unknown[0] == "codec":
            hint = "; a codec is chosen for each direction, as in codec@update=int4 codec@broadcast=int4"
        raise ConfigError(f"{unknown[0]}: there is no such setting{hint}")


def _built(target: Target | None, kind: Any) -> Any:
    if target is None:
        return None
    target.check()
    built = target.build()
    if not isinstance(built, kind):
        raise ConfigError(f"{target.group}._target_={target.target}: is no {target.group}")
    return built


def _check_across(settings: Settings) -> None:
    """Refuses what no single value shows."""
    rounds, optimizer = settings.rounds, settings.training.optimizer
    optimizer.check(("params", "lr"))
    optimizer.build(Architecture(settings.model.network).build().parameters(), lr=rounds.lr)
    asked = rounds.clients_per_round
    check_strategy(settings.server.strategy, asked)
    if rounds.min_completed is not None and rounds.min_completed > asked:
        are = "is" if asked == 1 else "are"
        raise ConfigError(
            f"min_completed={rounds.min_completed}: only {counted(asked, 'client')} {are} asked in a round"
        )
    if (fault := settings.faults) is not None:
        if fault.clients is not None and fault.clients > rounds.num_clients:
            raise ConfigError(f"faults.clients={fault.clients}: there {_are(rounds.num_clients, 'client')}")
        if fault.rounds is not None and max(fault.rounds, default=0) not in range(1, rounds.num_rounds + 1):
            raise ConfigError(f"faults.rounds={list(fault.rounds)}: there {_are(rounds.num_rounds, 'round')}")
    if settings.server.checkpoint.keep == "best" and not settings.data.holds_out:
        raise ConfigError(
            "checkpoint.keep=best: there are no validation images to judge by; set data.validation_fraction, as in 0.1"
        )
    settings.compute.check(settings.engine.reaches_gpu)
    check_clock(settings.clock, rounds, settings.server, settings.codecs, settings.faults, settings.constellation)


def _are(number: int, noun: str) -> str:
    return f"{'is' if number == 1 else 'are'} {counted(number, noun)}"
