"""`python -m fl.resume RUN_DIR`: continue a run that was killed, to the same bytes as if it had not been."""

import argparse
from pathlib import Path

from fl.errors import ConfigError, one_line_errors


def main() -> None:
    """Reads the run's own settings and continues after its last checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m fl.resume", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of the run, as in outputs/DATE/TIME")
    parser.add_argument("--trust", action="append", default=[], metavar="CLASS", help="a _target_ of your own")
    options = parser.parse_args()
    run_dir: Path = options.run_dir
    with one_line_errors():
        from fl.experiment import SETTINGS, run
        from fl.results import read_json
        from fl.server_app import MODEL

        if (run_dir / MODEL).exists():
            raise ConfigError(f"{run_dir}: is finished, it has a {MODEL}")
        if not (run_dir / SETTINGS).is_file():
            raise ConfigError(f"{run_dir}: is no run folder, it has no {SETTINGS}")
        print(f"Model: {run(read_json(run_dir / SETTINGS), run_dir, resume=True, trusted=options.trust)}")


if __name__ == "__main__":
    main()
