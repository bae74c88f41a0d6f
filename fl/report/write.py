"""The report as one file: a template filled with what a run's files say."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from fl.core.console import say
from fl.core.errors import ConfigError
from fl.core.files import write_bytes
from fl.core.run_folder import REPORT, ROUNDS, SETTINGS
from fl.report.content import of_run
from fl.report.parts import Content
from fl.report.records import RunRecords
from fl.report.several import of_runs

TEMPLATE = "page.html.md"
"""Its ending is one of those that an app bundle of Flower carries."""
LONGEST_REASON = 200


def write_report(folders: Sequence[Path], target: Path | None = None) -> Path:
    """Writes the report of a run, or of several side by side, and returns its path.

    Args:
        folders: of runs.
        target: of the file; beside the run by default, and for several in the current folder.

    Raises:
        ConfigError: a folder is none of a run.
    """
    for folder in folders:
        if not (folder / SETTINGS).is_file():
            raise ConfigError(f"{folder}: is no folder of a run, it has no {SETTINGS}")
    runs = [RunRecords(folder) for folder in folders]
    if len(runs) == 1:
        path = target or folders[0] / REPORT
        write_bytes(path, page(of_run(runs[0]), folders[0], path.parent).encode())
    else:
        path = target or Path(REPORT)
        write_bytes(path, page(of_runs(runs), None, path.parent).encode())
    return path


def write_report_or_say(folder: Path) -> None:
    """Writes the report of a run; what keeps it from that is said in a line and ends nothing."""
    try:
        if (folder / ROUNDS).is_file():
            write_report([folder])
    except Exception as error:  # whatever files hold; the run is what counts
        told = (str(error).splitlines() or [type(error).__name__])[0][:LONGEST_REASON]
        say(f"note: {folder / REPORT} could not be written ({told})")
        with suppress(OSError):  # so that nobody waits for it
            write_bytes(
                folder / REPORT, f"<!doctype html><title>quantfl</title><p>No report: {escape(told)}</p>\n".encode()
            )


def renew(path: Path) -> None:
    """Writes the report of the run again that a file lies in, or a folder is; nothing where there is none."""
    folder = path if path.is_dir() else path.parent
    if (folder / SETTINGS).is_file():
        write_report_or_say(folder)


def page(content: Content, folder: Path | None, beside: Path) -> str:
    """Returns the page as HTML.

    Args:
        content: what it says.
        folder: of the files that it names; None where they are of several.
        beside: the folder of the page, from which links lead there.
    """

    def source(told: str) -> str:
        name, colon, key = told.partition(":")
        if folder is None:
            return escape(told)
        place = quote(name) if folder.absolute() == beside.absolute() else (folder.absolute() / name).as_uri()
        return Markup('<a href="{}">{}</a>{}{}').format(place, name, colon, key)

    def is_text(cell: str) -> bool:
        return not cell[:1].isdigit() and cell[:1] not in ("+", "-", "–", "$")

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(TEMPLATE).render(page=content, source=source, is_text=is_text)
