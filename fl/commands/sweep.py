"""`python -m fl sweep DIR`: one table and pictures of all jobs of a multirun, finished or not.

Mean and standard deviation are over jobs that differ in the seed alone.
"""

from pathlib import Path

from fl.commands.arguments import Parser
from fl.core.errors import one_line_errors


def main() -> None:
    """Redraws table and pictures of a multirun folder."""
    parser = Parser(prog="python -m fl sweep", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a multirun, as in outputs/multirun/DATE/TIME")
    folder: Path = parser.parse_args().folder
    with one_line_errors():
        from fl.experiment.sweep import show, summarize
        from fl.tracking import renew

        show(folder, summarize(folder))
        renew(folder)
