"""Hydra's and OmegaConf's errors about overrides, each as one line with the valid choices."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError


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
        raise ConfigError(f"{told}; valid choices: {choices}" if choices else f"{told} ({_flat(error)})") from error
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: is not an override of the form key=value") from error
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        raise ConfigError(_composition(error, arguments)) from error
    except HydraException as error:
        raise ConfigError(_flat(error)) from error


def _composition(error: Exception, arguments: Sequence[str]) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = str(getattr(cause, "full_key", "") or getattr(cause, "key", "") or "")
    valid = [str(name) for name in getattr(cause, "parent_node", None) or []]
    at_fault = next((a for a in arguments if key and a.lstrip("+~").partition("=")[0].partition("@")[0] == key), key)
    if not valid:
        return _flat(error)
    near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{at_fault}: there is no setting {key}; {hint}valid settings: {', '.join(valid)}"


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
