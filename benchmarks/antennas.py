"""What a second antenna at every station changes: contact time lost, and hours of training replayed.

The command: python benchmarks/antennas.py [--json docs/antennas.json]

Ten updates of every satellite of the Walker presets over `ttc_uhf`, 1,000 s of training on board, one bit for each of
the network's values both ways, replayed. Passes are computed (skyfield) and kept until the end.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from contacts_table import TRAIN_S, VALUES
from table import parser_of, print_table, write_results

from fl.communication.constellation import load_constellation
from fl.communication.policies import FedBuff, Synchronous
from fl.communication.pricing import load_link
from fl.communication.replay import Lengths, replay
from fl.core.errors import one_line_errors
from fl.core.units import HOUR_S

CONSTELLATIONS, ANTENNAS, UPDATES = ("walker_12_3_1", "walker_40_4_1"), (1, 2), 10
COLUMNS = [
    "constellation",
    "stations",
    "antennas of each",
    "contact time lost",
    "synchronous",
    "FedBuff, K = half of all",
]


def rows(cache: Path) -> Iterator[list[str]]:
    """Yields a row for each constellation and number of antennas."""
    link = load_link("ttc_uhf", TRAIN_S)
    for name in CONSTELLATIONS:
        usual = load_constellation(name)
        payload = (round(VALUES / 8), round(VALUES / 8), 0.0)
        lengths = Lengths([dict.fromkeys(range(usual.satellites), payload)], shares_start=True)
        for antennas in ANTENNAS:
            stations = tuple(replace(each, antennas=antennas) for each in usual.stations)
            plan = replace(usual, stations=stations).plan(cache, link.acquisition_s)
            over, cells = replace(link, windows=plan.contacts), []
            for policy in (Synchronous(), FedBuff(buffer_size=usual.satellites // 2)):
                number = usual.satellites
                found = replay(over, policy, lengths, per_round=number, updates=UPDATES * number)
                cells.append(f"{found['elapsed_s'] / HOUR_S:.1f} h, ${found['cost_usd']:,.0f}")
            yield [name, str(len(stations)), str(antennas), f"{plan.lost_share:.1%}", *cells]


def main() -> None:
    """Replays, prints and stores."""
    parser = parser_of(str(__doc__), "# prints", "--json docs/antennas.json")
    parser.add_argument("--json", type=Path, help="write the table to this file, as docs/antennas.json")
    options = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as cache:
        print_table("Antennas of each station", COLUMNS, list(rows(Path(cache))))
        write_results(options.json, {})


if __name__ == "__main__":
    main()
