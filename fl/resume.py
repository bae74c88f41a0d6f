"""`python -m fl.resume RUN_DIR`: continue a run that was killed, to the same bytes as if it had not been."""

if __name__ == "__main__":
    from fl.stop import listen

    listen()

import shlex
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fl.arguments import Parser
from fl.errors import ConfigError, one_line_errors, python_command, shell_path


def stopped(run_dir: Path, trusted: Collection[str] = ()) -> str:
    """Returns how an interrupted run continues, and notes in its folder that it was interrupted.

    Args:
        run_dir: of the run; removed if nothing was written into it.
        trusted: classes of the user's own.
    """
    from fl.checkpoint import FILE
    from fl.results import read_jsonl, write_json
    from fl.run_folder import ROUNDS, SETTINGS, SUMMARY, is_complete

    with suppress(OSError):  # a folder in which nothing was written
        run_dir.rmdir()
    if is_complete(run_dir):
        return f"the run was finished: {shell_path(run_dir)}"
    if (run_dir / SETTINGS).exists() and not (run_dir / SUMMARY).exists():
        write_json(run_dir / SUMMARY, {"state": "interrupted", "error": None, "rounds_completed": 0})
    if not (run_dir / SETTINGS).exists():
        return "nothing had begun; start again"
    done = len(read_jsonl(run_dir / ROUNDS)) if (run_dir / FILE).exists() else 0
    how = f"after round {done} it continues with" if done else "no round was finished; it begins again with"
    trust = "".join(f" --trust {shlex.quote(each)}" for each in trusted)
    return f"{how}: {python_command()} -m fl.resume {shell_path(run_dir)}{trust}"


def main() -> None:
    """Reads the run's own settings and continues after its last checkpoint, or begins where there is none yet."""
    parser = Parser(prog="python -m fl.resume", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of the run, as in outputs/DATE/TIME")
    parser.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a _target_ of your own")
    options = parser.parse_args()
    run_dir: Path = options.run_dir
    with one_line_errors():
        from fl.results import read_json
        from fl.run_folder import SETTINGS, is_complete

        if not (run_dir / SETTINGS).is_file():
            raise ConfigError(f"{run_dir}: is no run folder, it has no {SETTINGS}")
        if is_complete(run_dir):
            print(f"{run_dir}: is finished, nothing is left to do")
            return
        try:
            from fl.experiment import run

            print(f"Model: {run(read_json(run_dir / SETTINGS), run_dir, resume=True, trusted=options.trust)}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(stopped(run_dir, options.trust)) from None


if __name__ == "__main__":
    main()
