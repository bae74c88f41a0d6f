"""A sweep while it runs: its folder, its planned jobs, its failures, and the table at its end."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from fl.core import output
from fl.core.console import label_lines, progress, say
from fl.core.errors import ConfigError, QuantflError, RunError, counted, python_command, shell_path
from fl.core.files import write_bytes, write_json
from fl.core.output import OutputSettings, complain, tell_bug
from fl.core.run_folder import MULTIRUN, SUMMARY
from fl.experiment.composing import quoted, refused_folder
from fl.experiment.sweep import DONE, HYDRA, OVERRIDES, PLAN, show, summarize


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """Returns the overrides of each job that Hydra's basic sweeper is about to start, in its order."""
    plain: Any = OmegaConf.to_container(config.hydra, resolve=False)
    arguments = [f"{key}={value}" for key, value in (plain["sweeper"].get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*arguments, *plain["overrides"]["task"]])
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def record_failure(folder: Path, error: Exception, hydra_files: Mapping[str, str]) -> None:
    """Writes down why a job failed, unless the run did so itself."""
    if not isinstance(error, QuantflError):
        tell_bug(error)
    if not (folder / HYDRA).exists():
        (folder / OVERRIDES).parent.mkdir(parents=True, exist_ok=True)
        for name, text in hydra_files.items():
            write_bytes((folder / OVERRIDES).parent / name, text.encode())
    if not (folder / SUMMARY).exists():
        write_json(folder / SUMMARY, {"state": "failed", "error": str(error) or type(error).__name__})


_chosen: ContextVar[list[Path]] = ContextVar("chosen")
"""The folders of multiruns that were begun within `sweep_table`: none or one."""

_steps: ContextVar[ExitStack] = ContextVar("steps")
"""What `sweep_table` is at, until the multirun ends."""


class Said(logging.Handler):
    """What Hydra tells, in the form of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage().strip())


SAID = {"version": 1, "handlers": {"said": {"class": f"{__name__}.Said"}}, "disable_existing_loggers": False}
SAID |= {"root": {"level": "INFO", "handlers": ["said"]}}


class Sweep(Callback):
    """Hydra's hook: chooses the folder of a multirun once for all its jobs, in whatever process they run.

    It is told to the `sweep_table` around it: Hydra makes the object and hands it to nobody.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Fixes `hydra.sweep.dir`, which would name a new folder each time it is read, and notes the jobs to come.

        Raises:
            SystemExit: the folder holds a multirun already (Hydra swallows every other exception here).
        """
        try:
            folder = str(config.hydra.sweep.dir)
        except OmegaConfBaseException:
            refused = refused_folder("hydra.sweep.dir")
            if refused is None:  # what Hydra cannot read it refuses itself, a moment later
                return
            _end(refused)
        if (Path(folder) / MULTIRUN).exists():
            _end(f"hydra.sweep.dir={folder}: holds a multirun already; choose another folder")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _end(refused_folder("hydra.sweep.dir", error))
        _chosen.get().append(Path(folder))
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.sweep.dir = folder
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
            if output.form != OutputSettings():
                config.hydra.hydra_logging = SAID
        try:
            jobs = planned_jobs(config)
        except Exception:  # what Hydra cannot sweep it refuses itself, a moment later
            return
        write_json(Path(folder) / PLAN, jobs)
        _steps.get().enter_context(progress("sweep", len(jobs), "job", count=lambda: _ended(Path(folder))))


def _ended(sweep: Path) -> int:
    """Returns how many jobs have come to an end, in whatever process."""
    return sum(1 for depth in ("*", "*/*") for _ in sweep.glob(f"{depth}/{SUMMARY}"))


def _end(told: str | None) -> NoReturn:
    """Ends with a line from within Hydra's hook, out of which no other exception comes."""
    complain(str(told))
    raise SystemExit(ConfigError.exit_code) from None


@contextmanager
def sweep_table() -> Iterator[None]:
    """Shows the table when the multirun within ends, however it ends.

    Raises:
        RunError: a job has not come to its end, or the launcher failed.
    """
    chosen: list[Path] = []
    token = _chosen.set(chosen)
    try:
        with ExitStack() as steps:
            _steps.set(steps)
            yield
    except KeyboardInterrupt as error:
        if not (chosen and chosen[0].exists()):
            raise
        table = f"the table of its jobs is drawn again by: {python_command()} -m fl sweep {shell_path(chosen[0])}"
        raise KeyboardInterrupt(*error.args, table) from None
    except Exception as error:
        if not chosen or isinstance(error, QuantflError):
            raise
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"hydra/launcher: could not run the jobs ({told})") from error
    finally:
        _chosen.reset(token)
        for folder in chosen:
            _finish(folder, interrupted=sys.exc_info()[0] is not None)


def _finish(folder: Path, interrupted: bool) -> None:
    from fl.tracking import renew  # beside what a run imports, it loads pydantic: not for --help

    label_lines(None)
    if not any(folder.rglob(OVERRIDES)):  # nothing ran
        if {path.name for path in folder.glob("*")} <= {PLAN, MULTIRUN}:
            for name in (PLAN, MULTIRUN):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        return
    document = summarize(folder)
    show(folder, document)
    renew(folder)
    bad = [row for row in document["jobs"] if row["state"] not in DONE]
    for row in bad:
        complain(f"job {row['job']}: {row['error'] or row['state']}")
    if bad and not interrupted:
        raise RunError(f"{len(bad)} of {counted(len(document['jobs']), 'job')} did not complete")
