"""The configuration, checked: every value the user can set, and what is wrong with it."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from fl.errors import ConfigError, counted, did_you_mean
from fl.targets import Target, first_problem

if TYPE_CHECKING:
    from fl.codec import Codec
    from fl.faults import Fault

Count = Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DataSettings:
    """The data group: where images come from and how they are split."""

    source: Target
    cache_dir: Path
    test_fraction: Annotated[float, Field(gt=0, lt=1, strict=True)]
    validation_fraction: Annotated[float, Field(ge=0, lt=1, strict=True)]
    verify_cache: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], trusted: Collection[str] = ()) -> "DataSettings":
        """Splits the group into the source's own settings and the common ones."""
        common = [field.name for field in dataclasses.fields(cls) if field.name != "source"]
        own = {key: value for key, value in config.items() if key not in common}
        source = Target.from_config("data", own, trusted)
        source.check("data")
        source.build("data")
        try:
            return cls(source=source, **{key: config[key] for key in common if key in config})
        except ValidationError as error:
            raise ConfigError(first_problem(error, "data")) from error


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CheckpointSettings:
    """Models of which rounds a run keeps beside its final one."""

    keep: Literal["last", "best", "all"] | int = "last"

    @field_validator("keep", mode="before")
    @classmethod
    def _known(cls, keep: Any) -> str | int:
        if keep in ("last", "best", "all") or (type(keep) is int and keep > 0):
            return keep
        raise ValueError("must be last, best, all or a number of rounds")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class InferenceSettings:
    """In which precision networks answer; `fp16` is None for "auto"."""

    fp16: bool | None = None

    @field_validator("fp16", mode="before")
    @classmethod
    def _word(cls, word: Any) -> bool | None:
        from fl.inference import fp16_wanted

        return fp16_wanted(word)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """All of `conf/config.yaml`, checked; field names are the user's argument names."""

    data: DataSettings
    partition: Target
    strategy: Target
    optimizer: Target
    training: Target
    engine: Target
    link: Target
    seed: Annotated[int, Field(ge=0, strict=True)]
    num_rounds: Count
    num_clients: Count
    fraction_train: Annotated[float, Field(gt=0, le=1, strict=True)]
    fraction_evaluate: Fraction
    min_completed: Count | None
    local_epochs: Count
    batch_size: Count
    lr: Positive
    lr_schedule: Literal["constant", "linear", "cosine"]
    augmentation: Literal["none", "flips", "dihedral"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1, strict=True)]
    device: Literal["auto", "cpu", "cuda"]
    threads_per_client: Count
    time_limit_min: Positive | None
    server_model: Literal["exact", "reference"]
    broadcast: Target | None = None
    reply_timeout_s: Positive | None = None
    round_timeout_s: Positive | None = None
    update: Target | None = None
    faults: Target | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    inference: InferenceSettings = InferenceSettings()


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
    known = [field.name for field in dataclasses.fields(Settings)]
    if unknown := [key for key in config if key not in known]:
        near = did_you_mean(unknown[0], known)
        hint = f"; did you mean {near}?" if near else ""
        if unknown[0] == "codec":
            hint = "; a codec is chosen for each direction, as in codec@update=int4 codec@broadcast=int4"
        raise ConfigError(f"{unknown[0]}: there is no such setting{hint}")
    groups: dict[str, Any] = {}
    config = {"training": {"_target_": "fl.training.Fp32"}, **config}  # runs from before there was a choice
    for name in ("partition", "strategy", "optimizer", "training", "engine", "link"):
        groups[name] = Target.from_config(name, config.get(name), trusted)
    for name in ("broadcast", "update"):
        if isinstance(config.get(name), str):
            raise ConfigError(f"{name}={config[name]}: a codec is chosen with codec@{name}={config[name]}")
        groups[name] = Target.from_config(name, config[name], trusted) if config.get(name) else None
    groups["faults"] = Target.from_config("faults", config["faults"], trusted) if config.get("faults") else None
    if not isinstance(config.get("data"), Mapping):
        raise ConfigError(f"data={config.get('data')!r}: must be a mapping with a _target_")
    groups["data"] = DataSettings.from_config(config["data"], trusted)
    try:
        settings = TypeAdapter(Settings).validate_python({**config, **groups})
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error
    _check_across(settings)
    return settings


def _check_across(settings: Settings) -> None:
    """Refuses what no single value shows."""
    import torch

    from fl.model import Net
    from fl.rounds import sample_size
    from fl.strategy import check_strategy

    settings.partition.check("partition")
    settings.partition.build("partition")
    settings.optimizer.check("optimizer", ("params", "lr"))
    settings.optimizer.build("optimizer", Net().parameters(), lr=settings.lr)
    asked = sample_size(settings.fraction_train, settings.num_clients)
    check_strategy(settings.strategy, asked)
    if settings.min_completed is not None and settings.min_completed > asked:
        are = "is" if asked == 1 else "are"
        raise ConfigError(
            f"min_completed={settings.min_completed}: only {counted(asked, 'client')} {are} asked in a round"
        )
    for name in ("broadcast", "update"):
        codec_of(settings, name)
    fault_of(settings)
    if settings.checkpoint.keep == "best" and not settings.data.validation_fraction:
        raise ConfigError(
            "checkpoint.keep=best: there are no validation images to judge by; set data.validation_fraction, as in 0.1"
        )
    settings.training.check("training")
    settings.training.build("training")
    settings.link.check("link")
    settings.link.build("link")
    settings.engine.check("engine")
    engine = settings.engine.build("engine")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no CUDA device here; use device=auto or device=cpu")
    if settings.device == "cuda" and not engine.reaches_gpu:
        raise ConfigError("device=cuda: clients see no GPU with engine.client_gpus=0; give each a share, as in 0.25")


def fault_of(settings: Settings) -> "Fault | None":
    """Returns what is put into clients, None for nothing."""
    from fl.faults import Fault

    if settings.faults is None:
        return None
    settings.faults.check("faults")
    fault = settings.faults.build("faults")
    if not isinstance(fault, Fault):
        raise ConfigError(f"faults._target_={settings.faults.target}: is no fault")
    if fault.clients is not None and fault.clients > settings.num_clients:
        raise ConfigError(f"faults.clients={fault.clients}: there {_are(settings.num_clients, 'client')}")
    if fault.rounds is not None and max(fault.rounds, default=0) not in range(1, settings.num_rounds + 1):
        raise ConfigError(f"faults.rounds={list(fault.rounds)}: there {_are(settings.num_rounds, 'round')}")
    return fault


def _are(number: int, noun: str) -> str:
    return f"{'is' if number == 1 else 'are'} {counted(number, noun)}"


def codec_of(settings: Settings, name: str) -> "Codec | None":
    """Returns the codec of a direction."""
    from fl.codec import Codec

    target: Target | None = getattr(settings, name)
    if target is None:
        return None
    target.check(name)
    codec = target.build(name)
    if not isinstance(codec, Codec):
        raise ConfigError(f"{name}._target_={target.target}: is no codec")
    if codec.decay != 1 and not codec.error_feedback:
        raise ConfigError(f"{name}.decay={codec.decay:g}: does nothing without {name}.error_feedback=true")
    return codec
