"""`python -m fl.train`: compose `conf/`, then run the rounds. See `--help`."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fl.errors import QuantflError, RunError, one_line_errors
from fl.overrides import CONF, explained, new_folder, typed_targets

_failed: list[str] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _main(config: DictConfig) -> None:
    from fl.console import say
    from fl.experiment import run
    from fl.server_app import SUMMARY

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    overrides = list(hydra_config.overrides.task)
    try:
        model = run(plain, run_dir, trusted=typed_targets(overrides), hydra_files=_hydra_files(config, hydra_config))
    except QuantflError as error:  # Hydra would print a line of its own
        _failed.append(f"job {hydra_config.job.num}: {error}" if hydra_config.mode == RunMode.MULTIRUN else str(error))
        with suppress(OSError):  # a folder in which nothing was written
            run_dir.rmdir()
        return
    shown = Path(os.path.relpath(model))
    say(f"\nModel:   {shown}\nSummary: {shown.with_name(SUMMARY)}\nNext:    python compare_quantizations.py {shown}")


def _hydra_files(config: DictConfig, hydra_config: Any) -> dict[str, str]:
    """Returns what Hydra would write to `.hydra/`; it is written once the settings have been checked."""
    overrides = "".join(f"- {override}\n" for override in hydra_config.overrides.task)
    whole = OmegaConf.create({"hydra": hydra_config})
    return {
        "config.yaml": OmegaConf.to_yaml(config),
        "overrides.yaml": overrides,
        "hydra.yaml": OmegaConf.to_yaml(whole),
    }


def main() -> None:
    """Runs Hydra so that every mistake of the user ends in one line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, `explained` puts it in one line
    OmegaConf.register_new_resolver("new_folder", new_folder)
    with one_line_errors(), explained(sys.argv[1:]):
        _main()
        for line in _failed[:-1]:
            print(f"error: {line}", file=sys.stderr)
        if _failed:
            raise RunError(_failed[-1]) from None


if __name__ == "__main__":
    main()
