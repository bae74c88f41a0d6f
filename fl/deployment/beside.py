"""Deployment files beside the model files of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fl.core.console import heading, say, show_table
from fl.core.errors import VerificationError, counted
from fl.core.files import sha256
from fl.data.provenance import Inputs, Run
from fl.deployment.files import COLUMNS, entries, measure_file, same_precision, table_rows, write_files
from fl.deployment.formats import formats
from fl.deployment.memory import peak_memory
from fl.models.architecture import architecture_of
from fl.models.net import Network
from fl.training.evaluation import Evaluation


class About(Protocol):
    """What deployment files are made and judged by: a network, images, and the run that made it, if known."""

    @property
    def model(self) -> Network: ...
    @property
    def inputs(self) -> Inputs: ...
    @property
    def run(self) -> Run | None: ...
    @property
    def batch_size(self) -> int: ...


class DeploymentFiles:
    """Deployment files beside the model files of a comparison.

    Args:
        names: of the formats to write, or all.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.formats = formats(names, "--formats")

    def write(self, about: About, known: Mapping[str, Evaluation], folder: Path) -> dict[str, Any]:
        """Writes the files into an existing folder and returns their entries, see `entries`.

        Args:
            about: the network and the images.
            known: our own model's answers, by precision, as far as they are known.
            folder: for the files.
        """
        heading(f"Deployment formats: {', '.join(each.name for each in self.formats)}")
        paths = write_files(about.model, self.formats, about.inputs.calibration, folder)
        return _entries_of(paths, about, known)

    def measure_again(
        self, about: About, known: Mapping[str, Evaluation], folder: Path, stored: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the entries of the files that a stored report names; each is tried in a process of its own first.

        Raises:
            VerificationError: one is another file; none of them was run.
            ModelFileError: one cannot be run.
        """
        places = {f"formats.{name}.{precision}": e for name, each in stored.items() for precision, e in each.items()}
        paths = {place: folder / Path(entry["model_path"]).name for place, entry in places.items()}
        found = {place: sha256(path.read_bytes()) if path.is_file() else "no file" for place, path in paths.items()}
        if other := [place for place, entry in places.items() if entry["file_sha256"] != found[place]]:
            for place in other:
                say(
                    f"DIFFERS  {place}.file_sha256: {places[place]['file_sha256']} stored, {found[place]} now",
                    "warning",
                )
            raise VerificationError(
                f"{folder}: {counted(len(other), 'deployment file')} of the report differ, and none was run"
            )
        for path in paths.values():
            peak_memory(path, "cpu", 1, [1], architecture_of(about.model).target)
        return _entries_of(list(paths.values()), about, known)

    def show(self, report: Mapping[str, Any], model_files: Mapping[str, Any] | None) -> None:
        """Prints the table of entries, those of our own model files first."""
        show_table(COLUMNS, table_rows(report, model_files), keys=2)


def _entries_of(paths: Sequence[Path], about: About, known: Mapping[str, Evaluation]) -> dict[str, Any]:
    files = [measure_file(path, about.inputs.test, about.batch_size, architecture_of(about.model)) for path in paths]
    answers = same_precision(about.model, known, about.inputs.calibration, about.inputs.test, about.batch_size)
    return entries(files, answers, about.run.trained_for if about.run else lambda precision: None)
