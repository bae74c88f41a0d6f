"""`python -m fl resume RUN_DIR`: continue a run that was killed, to the same bytes as if it had not been."""

from pathlib import Path

from fl.commands.arguments import Parser
from fl.core.console import loading_libraries, say
from fl.core.errors import ConfigError, one_line_errors
from fl.core.files import read_json
from fl.core.run_folder import SETTINGS, is_complete, stopped


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl resume",
        description=__doc__,
        examples=[
            "python -m fl resume outputs/DATE/TIME",
            "python -m fl resume outputs/DATE/TIME --trust my_module.MyNet    # a class that the run was given",
        ],
    )
    made.add_argument("run_dir", type=Path, help="folder of the run, as in outputs/DATE/TIME")
    made.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a _target_ of your own")
    return made


def main() -> None:
    """Reads the run's own settings and continues after its last checkpoint, or begins where there is none yet."""
    options = parser().parse_args()
    run_dir: Path = options.run_dir
    with one_line_errors():
        if not (run_dir / SETTINGS).is_file():
            raise ConfigError(f"{run_dir}: is no run folder, it has no {SETTINGS}")
        if is_complete(run_dir):
            from fl.tracking import renew

            say(f"{run_dir}: is finished, nothing is left to do", event="result")
            renew(run_dir)  # of what the tracker has missed
            return
        try:
            with loading_libraries():
                from fl.experiment.run import run

            model = run(read_json(run_dir / SETTINGS), run_dir, resume=True, trusted=options.trust)
            say(f"Model: {model}", event="result")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(stopped(run_dir, options.trust)) from None
