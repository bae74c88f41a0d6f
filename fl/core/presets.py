"""`conf/`: where it lies, and YAML files as plain data."""

import io
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fl.core.errors import ConfigError, suggestion
from fl.core.files import yaml_text

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""Inside the package where it was installed, beside it in a checkout and in an app bundle of Flower."""


def choices(group: str) -> list[str]:
    """Returns the names of a group's files, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def preset(group: str, name: str) -> dict[str, Any]:
    """Returns one of a group's choices, interpolations resolved."""
    return dict(yaml_file(CONF / group / f"{name}.yaml"))


def chosen(group: str, choice: str) -> Any:
    """Returns one of a group's choices by its name, or a YAML file by its path, as plain data.

    Args:
        group: the option `--GROUP` chose it.
        choice: name or path.

    Raises:
        ConfigError: there is none, or it is no YAML.
    """
    path = Path(choice) if choice.endswith((".yaml", ".yml")) else CONF / group / f"{choice}.yaml"
    if not path.is_file():
        known = (
            f"{suggestion(choice, choices(group))}valid choices: {', '.join(choices(group))}, or the path of a YAML "
        )
        known += "file"
        raise ConfigError(f"--{group} {choice}: there is no such {group}; {known}")
    try:
        ours = path.resolve().is_relative_to(CONF.resolve())
        config = yaml_file(path, resolve=ours)
        if not ours and "${" in yaml_text(path):
            raise ValueError("it has an interpolation, ${...}; write out what it stands for")
        return config
    except ValueError as error:
        raise ConfigError(f"--{group} {choice}: is no valid YAML ({error})") from error


def yaml_file(path: Path, resolve: bool = True) -> Any:
    """Returns a YAML file as plain data.

    Args:
        path: of the file, which need not be one of ours.
        resolve: interpolations are replaced by what they stand for.

    Raises:
        ValueError: it is none; the message is one line.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(yaml_text(path))), resolve=resolve)
    except Exception as error:  # whatever the parser makes of it
        raise ValueError(str(error).splitlines()[0]) from error
