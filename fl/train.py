"""`python -m fl.train`: compose `conf/`, then run the rounds. See `--help`."""

if __name__ == "__main__":
    from fl.core.stop import listen

    listen()

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fl.core.console import label_lines, loading_libraries, say
from fl.core.cores import available_cores
from fl.core.errors import QuantflError, one_line_errors, python_command, shell_path, silence_s
from fl.core.files import read_json
from fl.core.output import OF_THE_PROCESS, speak_as_typed
from fl.core.presets import CONF
from fl.core.run_folder import COMMUNICATION, SUMMARY, stopped
from fl.core.steps import heartbeat
from fl.core.units import MIB
from fl.experiment.composing import explained, literal, new_folder, overrides_first, typed_targets
from fl.experiment.multirun import record_failure, sweep_table


def _train(config: DictConfig) -> Exception | None:
    """Runs one job, says where its model lies, and returns what was wrong with the user's settings, data or folder."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    overrides, files = list(hydra_config.overrides.task), _hydra_files(config, hydra_config)
    speak_as_typed(overrides)  # in a process of its own too
    trusted = typed_targets(overrides)
    many = hydra_config.mode == RunMode.MULTIRUN
    if many and not hydra_config.launcher._target_.endswith(".BasicLauncher"):
        label_lines(hydra_config.job.num)
    try:
        with heartbeat(silence_s()):  # of a job in a process of its own
            with loading_libraries():
                from fl.experiment.run import run

            model = run(plain, run_dir, trusted=trusted, hydra_files=files)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped(run_dir, trusted)) from None
    except Exception as error:
        if many:  # the others go on
            record_failure(run_dir, error, files)
            return None
        with suppress(OSError):  # a folder in which nothing was written
            run_dir.rmdir()
        if not isinstance(error, QuantflError | OSError):
            raise
        return error
    shown = Path(os.path.relpath(model))
    python, script = python_command(), CONF.with_name("compare_quantizations.py")
    say(f"\nModel:   {shown}\nSummary: {shown.with_name(SUMMARY)}", event="result")
    say(f"Traffic: {_traffic(run_dir)}")
    compare = shell_path(script) if script.is_file() else "-m fl compare"  # where it was installed
    say(f"Next:    {python} {compare} {shell_path(shown)}")
    return None


def _traffic(run_dir: Path) -> str:
    """Returns what travelled in a finished run, beside what FP32 would have sent from the same start."""
    total = read_json(run_dir / COMMUNICATION)["measured"]["total"]
    sent, as_fp32, ratio = total["payload_bytes"], total["fp32_payload_bytes"], total["compression_ratio"]
    text = f"{sent / MIB:.2f} MB of payload in both directions"
    return text if sent == as_fp32 else f"{text}, {as_fp32 / MIB:.2f} MB as FP32: {ratio:.2f}x fewer bytes"


def _hydra_files(config: DictConfig, hydra_config: Any) -> dict[str, str]:
    """Returns what Hydra would write to `.hydra/`; it is written once the settings have been checked."""
    whole = OmegaConf.create({"hydra": hydra_config})
    own = [str(name) for name in config if name not in OF_THE_PROCESS]
    overrides = [each for each in hydra_config.overrides.task if each.partition("=")[0] not in OF_THE_PROCESS]
    return {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, own)),
        "overrides.yaml": OmegaConf.to_yaml(overrides),
        "hydra.yaml": OmegaConf.to_yaml(whole),
    }


def main() -> None:
    """Runs Hydra so that every mistake of the user ends in one line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, `explained` puts it in one line
    OmegaConf.register_new_resolver("new_folder", new_folder)
    OmegaConf.register_new_resolver("jobs_at_once", lambda threads: max(1, available_cores() // max(1, int(threads))))
    failed: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        if (error := _train(config)) is not None:
            failed.append(error)  # Hydra would print a line of its own

    speak_as_typed(sys.argv[1:])
    with one_line_errors():
        sys.argv[1:] = literal(overrides_first(sys.argv[1:]))
        with sweep_table(), explained(sys.argv[1:]):
            job()
            if failed:
                raise failed[0]


if __name__ == "__main__":
    main()
