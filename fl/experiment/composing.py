"""What command lines share: where `conf/` is, new folders, what was typed, and Hydra's errors in one line each."""

import errno
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.core.errors import ConfigError, did_you_mean, suggestion
from fl.core.presets import CONF

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")

OTHER_WORDS = {
    "clients": "num_clients",
    "rounds": "num_rounds",
    "epochs": "local_epochs",
    "learning_rate": "lr",
    "dataset": "data",
    "threads": "threads_per_client",
    "time_limit": "time_limit_min",
    "output": "hydra.run.dir",
    "run_dir": "hydra.run.dir",
}
"""What settings are called elsewhere, and here."""

HELP = "see python -m fl.train --help"


@functools.cache
def new_folder(wanted: str) -> str:
    """Makes and returns a folder that did not exist: `wanted`, or with a suffix when it is taken."""
    try:
        Path(wanted).parent.mkdir(parents=True, exist_ok=True)
        for suffix in ["", *(f"-{number}" for number in range(2, 1000))]:
            with suppress(FileExistsError):
                Path(wanted + suffix).mkdir()
                return wanted + suffix
        raise FileExistsError(errno.EEXIST, "exists, as do 998 like it", wanted)
    except OSError as error:
        _refused.append(error)  # OmegaConf, which calls this, does not pass the cause on
        raise


_refused: list[OSError] = []


def refused_folder(setting: str, refused: OSError | None = None) -> str | None:
    """Returns what to say when the system did not let a run's folder be made, None where it did."""
    if refused is None and not _refused:
        return None
    error = refused or _refused[-1]
    told = error.strerror or str(error)
    return f"{error.filename}: the folder of the run cannot be made ({told}); choose another, as in {setting}=/tmp/run"


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the configuration that these overrides give on the command line of `fl.train`, as plain data.

    Raises:
        ConfigError: an override that cannot be honoured.
    """
    overrides = literal(overrides)
    with explained(overrides), initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    if config.hydra.mode == RunMode.MULTIRUN:
        raise ConfigError("experiment: this one is a sweep, of many runs; start it with python -m fl.train")
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    with explained(overrides):
        plain: Any = OmegaConf.to_container(config, resolve=True)
    return dict(plain)


def typed_targets(overrides: Sequence[str]) -> list[str]:
    """Returns the `_target_` values among overrides: the user typed them, so they may be built."""
    pairs = (override.partition("=") for override in overrides)
    return [value.strip("'\"") for key, _, value in pairs if key.endswith("._target_")]


def quoted(text: str) -> str:
    """Returns a text as Hydra's grammar quotes it, so that it arrives as it is."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def literal(overrides: Sequence[str]) -> list[str]:
    """Returns overrides in which values that Hydra's grammar has no words for are quoted, such as folders' names."""
    return [_literal(override) for override in overrides]


def _literal(override: str) -> str:
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if not equals or key.startswith(("-", "~")):
        return override
    try:
        parsed = OverridesParser.create().parse_override(override)
        several_paths = parsed.is_sweep_override() and Path(value).exists()
        if value[:1] in ("'", '"') or (name not in FOLDERS and not several_paths):
            return override
    except HydraException as error:  # a misspelt function of Hydra's is no text
        if "Unknown function" in str(error) and not name.endswith(("dir", "path")):
            return override
    told = f"{key}={quoted(str(Path(value).expanduser()) if value.startswith('~/') else value)}"
    try:
        OverridesParser.create().parse_override(told)
    except HydraException:  # the fault is not the value's
        return override
    return told


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """Returns a command line with its overrides before Hydra's options, which may stand among them.

    Raises:
        ConfigError: an argument is neither; says how the setting is given.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{_flat(message)}; settings are given without dashes, as in num_rounds=3; {HELP}")

    parser.error = refuse  # type: ignore[method-assign]
    typed = next((each for each in arguments if re.match("-[a-z][a-z_]{2}", each)), None)  # -rounds is not -r
    known, unknown = parser.parse_known_args([] if typed else list(arguments))
    typed = typed or next((each for each in unknown if each.startswith("-")), None)
    if typed is None:
        overrides = [*known.overrides, *unknown]
        return [*overrides, *(each for each in arguments if each not in overrides)]
    option, _, value = typed.partition("=")
    after = arguments[arguments.index(typed) + 1 :][:1]
    if not value and after and not after[0].startswith("-") and "=" not in after[0]:
        typed, value = f"{typed} {after[0]}", after[0]
    name = _setting(option.lstrip("-").replace("-", "_"))
    if name is None:
        raise ConfigError(f"{typed}: there is no such option; settings are given as num_rounds=3; {HELP}")
    names = ("codec@update", "codec@broadcast") if name == "codec" else (name,)
    way = " ".join(f"{each}={value or 'VALUE'}" for each in names)
    raise ConfigError(f"{typed}: settings are given without dashes: {way}; {HELP}")


def _setting(word: str) -> str | None:
    """Returns the setting that a word means, None for none."""
    config = OmegaConf.load(CONF / "config.yaml")
    groups = [next(iter(each)).partition("@")[0] for each in config.defaults if not isinstance(each, str)]
    known = [str(key) for key in config if key not in ("defaults", "hydra")] + [g for g in groups if " " not in g]
    if word in OTHER_WORDS:
        return OTHER_WORDS[word]
    head, dot, tail = word.partition("." if "." in word else "_")
    if word not in known and dot and head in (*known, "update", "broadcast"):
        return f"{head}.{tail}"
    return word if word in known else did_you_mean(word, known)


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
        same = (a for a in arguments if a.partition("=")[2] == wanted and a.lstrip("+").startswith(group))
        told = f"{next(same, '='.join([group or 'config', wanted]))}: there is no such choice"
        if wanted.startswith("submitit"):
            raise ConfigError(f"{told}; install it with: pip install -c constraints.txt -e '.[slurm]'") from error
        choices = sorted(error.options or [])
        valid = f"; {suggestion(wanted, choices)}valid choices: {', '.join(choices)}"
        told += valid if choices else f" ({_flat(error)})"
        raise ConfigError(told) from error
    except OverrideParseException as error:
        if "=" in error.override:
            fault = _flat(error.message).partition(" See https")[0]
            fault = fault.removeprefix(f"Error parsing override '{error.override}' ")
            raise ConfigError(f"{error.override}: cannot be read ({fault})") from error
        raise ConfigError(f"{error.override}: is not an override of the form key=value; {HELP}") from error
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        setting = str(getattr(error, "full_key", ""))
        refused = refused_folder(setting) if setting in FOLDERS else None
        raise ConfigError(refused or _composition(error, arguments)) from error
    except HydraException as error:
        raise ConfigError(_flat(error)) from error
    except OSError as error:
        chosen = (a.partition("=") for a in arguments if a.startswith(tuple(f"{each}=" for each in FOLDERS)))
        for setting, _, folder in chosen:
            if error.filename and Path(folder.strip("'\"")).absolute().is_relative_to(Path(error.filename).absolute()):
                raise ConfigError(refused_folder(setting, error)) from error
        raise
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        at_fault = next((a for a in arguments if a.endswith(("=null", "=None"))), "group")
        raise ConfigError(f"{at_fault}: name one of the group's choices, or leave the argument out") from error


def _composition(error: Exception, arguments: Sequence[str]) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    no_group = re.match("Could not override '(.+?)'", str(error))
    if no_group and cause is error:
        return _no_group(no_group[1], arguments)
    key = str(getattr(cause, "full_key", "") or getattr(cause, "key", "") or "")
    valid = [str(name) for name in getattr(cause, "parent_node", None) or [] if name not in ("_target_", "hydra")]
    at_fault = _typed(key, arguments)
    group, _, name = key.rpartition(".")
    if group in ("broadcast", "update") and not valid:
        return f"{at_fault}: no codec is chosen that has such a setting; choose one, as in codec@{group}=ecq"
    if getattr(cause, "parent_node", None) is None:
        return _flat(error)
    if group == "model" and any(each.startswith("model._target_=") for each in arguments):
        return f"{at_fault}: a setting of your own class is added with a plus, as in +{at_fault}"
    near = OTHER_WORDS.get(key, did_you_mean(name, valid))
    hint = f"did you mean {near}? " if near else _elsewhere(group, name)
    names = f"valid settings: {', '.join(valid)}" if valid else f"{group} as chosen has none"
    return f"{at_fault}: there is no setting {key}; {hint}{names}"


def _no_group(group: str, arguments: Sequence[str]) -> str:
    """Returns what to say of a choice for a group that is not there."""
    typed = _typed(group, arguments)
    name, _, choice = typed.partition("=")
    name = name.partition("@")[0]
    if name == "codec":
        return f"{typed}: a codec is chosen for each direction: codec@update={choice} codec@broadcast={choice}"
    if name == "precision":
        return (
            f"{typed}: is of model files (compare_quantizations.py --precisions {choice}); what a run trains in is "
            "training=amp or training=qat, what it sends is codec@update and codec@broadcast"
        )
    return f"{typed}: there is no such group here; {HELP}"


def _elsewhere(group: str, name: str) -> str:
    """Returns a hint at another choice of the group that has such a setting."""
    for path in sorted((CONF / group).glob("*.yaml")) if group else []:
        keys = [str(key) for key in OmegaConf.load(path) or [] if key != "_target_"]
        if near := did_you_mean(name, keys):
            return f"{group}={path.stem} has {near}; "
    return ""


def _typed(key: str, arguments: Sequence[str]) -> str:
    """Returns the argument that sets `key`, or the key itself."""
    wanted = (key, key.partition("@")[0])
    return next((a for a in arguments if key and a.lstrip("+~").partition("=")[0] in wanted), key)


def _flat(error: object) -> str:
    return " ".join(str(error).split())
