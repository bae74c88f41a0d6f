"""`python benchmarks/contact_plan.py`: seconds that contact plans of thirty days over three stations take."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from fl.communication.constellation import load_constellation

ACQUISITION_S = 30.0


def main() -> None:
    """Prints seconds of wall and processor, without and with the cache."""
    forty = load_constellation("walker_40_4_1")
    for constellation in (forty, replace(forty, total=100, planes=5)):
        with tempfile.TemporaryDirectory() as cache:
            for place in ("computed", "from the cache"):
                began, busy = time.perf_counter(), time.process_time()
                plan = constellation.plan(Path(cache), ACQUISITION_S)
                spent = f"{time.perf_counter() - began:.1f} s ({time.process_time() - busy:.1f} s of processor time)"
                contacts = sum(map(len, plan.contacts.windows))
                print(
                    f"{plan.satellites} satellites, {place}: {spent}, {contacts:,} contacts, {plan.lost_share:.1%} lost"
                )


if __name__ == "__main__":
    main()
