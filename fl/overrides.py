"""What command lines share: where `conf/` is, new folders, and Hydra's errors about overrides in one line each."""

import difflib
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf"


@functools.cache
def new_folder(wanted: str) -> str:
    """Makes and returns a folder that did not exist: `wanted`, or with a suffix when it is taken."""
    for suffix in ["", *(f"-{number}" for number in range(2, 1000))]:
        try:
            Path(wanted + suffix).mkdir(parents=True)
            return wanted + suffix
        except FileExistsError:
            continue
    raise FileExistsError(wanted)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the configuration that these overrides give on the command line of `fl.train`, as plain data.

    Raises:
        ConfigError: an override that cannot be honoured.
    """
    with explained(overrides), initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    if config.hydra.mode == RunMode.MULTIRUN:
        raise ConfigError("experiment: this one is a sweep, of many runs; start it with python -m fl.train")
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    with explained(overrides):
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def typed_targets(overrides: Sequence[str]) -> list[str]:
    """Returns the `_target_` values among overrides: the user typed them, so they may be built."""
    pairs = (override.partition("=") for override in overrides)
    return [value.strip("'\"") for key, _, value in pairs if key.endswith("._target_")]


@contextmanager
def explained(arguments: Sequence[str]) -> Iterator[None]:
    """Turns errors of composing a configuration into `ConfigError`.

    Args:
        arguments: of the command line, to name the one at fault.
    """
    try:
        yield
    except MissingConfigException as error:
        group, _, wanted = str(error.missing_cfg_file or "").rpartition("/")
        choices = ", ".join(sorted(error.options or []))
        told = f"{group or 'config'}={wanted}: there is no such choice"
        if wanted.startswith("submitit"):
            raise ConfigError(f"{told}; install it with: pip install -e '.[slurm]'") from error
        raise ConfigError(f"{told}; valid choices: {choices}" if choices else f"{told} ({_flat(error)})") from error
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: is not an override of the form key=value") from error
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        raise ConfigError(_composition(error, arguments)) from error
    except HydraException as error:
        raise ConfigError(_flat(error)) from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        at_fault = next((a for a in arguments if a.endswith(("=null", "=None"))), "group")
        raise ConfigError(f"{at_fault}: name one of the group's choices, or leave the argument out") from error


def _composition(error: Exception, arguments: Sequence[str]) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = str(getattr(cause, "full_key", "") or getattr(cause, "key", "") or "")
    valid = [str(name) for name in getattr(cause, "parent_node", None) or []]
    at_fault = next((a for a in arguments if key and a.lstrip("+~").partition("=")[0].partition("@")[0] == key), key)
    if not valid and (way := key.partition(".")[0]) in ("broadcast", "update"):
        return f"{at_fault}: no codec is chosen that has such a setting; choose one, as in codec@{way}=ecq"
    if not valid:
        return _flat(error)
    near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{at_fault}: there is no setting {key}; {hint}valid settings: {', '.join(valid)}"


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
