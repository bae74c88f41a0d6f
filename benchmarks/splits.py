"""What the default recipe reaches on EuroSAT split at random and by longitude, with equally many training images.

    python benchmarks/splits.py [--only NAME] [--jobs 1] [--report] [overrides of fl.train ...]

The runs of benchmarks/split_table.py on real EuroSAT (EUROSAT_ZIP, EUROSAT_SPLITS). Figures are kept in
docs/splits.json; it can be stopped at any time.
"""

import tables
from grid import ROOT, basic_figures, fill, options_of
from split_table import KEPT, ROWS, table

from fl.core.console import say
from fl.core.errors import one_line_errors


def main() -> None:
    """Runs what is missing, shows the table and puts it into the docs."""
    options = options_of(str(__doc__), ROWS, KEPT, ROOT / "outputs" / "splits")
    with one_line_errors():
        say(table(fill(options, ROWS, KEPT, basic_figures)))
        tables.write(options.folder)


if __name__ == "__main__":
    main()
