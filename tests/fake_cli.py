"""The command line with studies that take no time, or all of it, in a process of its own."""

from __future__ import annotations

import signal

from pyronorm import cli, study
from pyronorm.study import Entry, catalog
from tests.study.fakes import Fake, FakeSettings

SLOW = FakeSettings(seeds=(0,), seconds=60.0)
LARGE = FakeSettings(numbers=(("b/y", 20_000),))
ENTRIES = {
    "slow": Entry(Fake, SLOW, SLOW, "takes a minute for each job"),
    "large": Entry(Fake, LARGE, LARGE, "writes 80 kB"),
}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in tests in the background
    catalog.STUDIES = study.STUDIES = {**study.STUDIES, **ENTRIES}
    cli.main()
