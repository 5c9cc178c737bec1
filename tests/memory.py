"""A Hydra callback for tests: writes the resident memory after each job of a multirun."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class Memory(Callback):
    def on_job_end(self, config: Any, **_: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with (Path(config.hydra.sweep.dir) / "resident.txt").open("a") as file:
            print(pages * os.sysconf("SC_PAGE_SIZE"), file=file)
