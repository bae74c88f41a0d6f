"""Seconds that a contact plan of thirty days over three stations takes, computed and from the cache.

The command: python benchmarks/contact_plan.py [--planes 4] [--satellites 40 100] [--json FILE]
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from table import parser_of, print_table, write_results

from fl.communication.constellation import Walker, load_constellation
from fl.core.errors import one_line_errors

CONSTELLATION = "walker_40_4_1"
ACQUISITION_S = 30.0
COLUMNS = ("Satellites", "Plan", "Seconds", "Processor s", "Contacts", "Lost to other satellites")


def measured(constellation: Walker, cache: Path, place: str) -> dict[str, object]:
    """Returns the seconds of one plan, and what is in it."""
    began, busy = time.perf_counter(), time.process_time()
    plan = constellation.plan(cache, ACQUISITION_S)
    return {
        "satellites": plan.satellites,
        "plan": place,
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - busy,
        "contacts": sum(map(len, plan.contacts.windows)),
        "lost_share": plan.lost_share,
    }


def main() -> None:
    """Measures and prints."""
    parser = parser_of(str(__doc__), "--satellites 40", "--planes 5 --satellites 100 --json figures.json")
    parser.add_argument("--planes", type=int, default=4, help="that share the satellites evenly (4)")
    parser.add_argument("--satellites", type=int, nargs="+", default=[40, 100], help="one plan for each (40 100)")
    parser.add_argument("--json", type=Path, help="write all figures to this file, as docs/speed/contact-plan.json")
    options = parser.parse_args()
    rows = []
    with one_line_errors():
        usual = load_constellation(CONSTELLATION)
        for satellites in options.satellites:
            constellation = replace(usual, total=satellites, planes=options.planes)
            with tempfile.TemporaryDirectory() as cache:
                rows += [measured(constellation, Path(cache), place) for place in ("computed", "from the cache")]
        print_table(
            f"Contact plans of {usual.days:g} days, {len(usual.stations)} stations, {options.planes} planes",
            COLUMNS,
            [
                [
                    f"{row['satellites']}",
                    f"{row['plan']}",
                    f"{row['seconds']:.1f}",
                    f"{row['cpu_s']:.1f}",
                    f"{row['contacts']:,}",
                    f"{row['lost_share']:.1%}",
                ]
                for row in rows
            ],
        )
        write_results(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
