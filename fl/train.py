"""`python -m fl.train`: compose `conf/`, then run the rounds. See `--help`."""

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fl.errors import QuantflError, one_line_errors
from fl.overrides import explained

_failed: list[QuantflError] = []
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


def typed_targets(overrides: list[str]) -> list[str]:
    """Returns the `_target_` values among command-line overrides: the user typed them, so they may be built."""
    pairs = (override.partition("=") for override in overrides)
    return [value.strip("'\"") for key, _, value in pairs if key.endswith("._target_")]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _main(config: DictConfig) -> None:
    from fl.console import say
    from fl.experiment import run
    from fl.server_app import SUMMARY

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    try:
        model = run(plain, run_dir, trusted=typed_targets(list(hydra_config.overrides.task)))
    except QuantflError as error:  # Hydra would print a line of its own
        _failed.append(error)
        return
    shown = Path(os.path.relpath(model))
    say(f"\nModel:   {shown}\nSummary: {shown.with_name(SUMMARY)}\nNext:    python compare_quantizations.py {shown}")


def _stop(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Runs Hydra so that every mistake of the user ends in one line."""
    signal.signal(signal.SIGTERM, _stop)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, `explained` puts it in one line
    OmegaConf.register_new_resolver("new_folder", new_folder)
    with one_line_errors(), explained(sys.argv[1:]):
        _main()
        if _failed:
            raise _failed[0]


if __name__ == "__main__":
    main()
