"""`python -m fl sweep DIR`: one table and pictures of all jobs of a multirun, finished or not.

Mean and standard deviation are over jobs that differ in the seed alone.
"""

from pathlib import Path

from fl.commands.arguments import Parser
from fl.core.errors import one_line_errors


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl sweep",
        description=__doc__,
        examples=[
            "python -m fl sweep outputs/multirun/DATE/TIME",
            "python -m fl sweep outputs/multirun/DATE/TIME --quiet    # files only, no table",
        ],
    )
    made.add_argument("folder", type=Path, help="of a multirun, as in outputs/multirun/DATE/TIME")
    return made


def main() -> None:
    """Redraws table and pictures of a multirun folder."""
    folder: Path = parser().parse_args().folder
    with one_line_errors():
        from fl.experiment.sweep import show, summarize
        from fl.tracking import renew

        show(folder, summarize(folder))
        renew(folder)
