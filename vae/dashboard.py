"""TensorBoard over all runs: python -m vae.dashboard [--logdir outputs] [any flag of tensorboard].

TensorBoard calls a run by the folder of its event files, so that every name would end in
`/tensorboard`. This starts it over a temporary folder with a link for each run, and adds links
for new runs while it is open.
"""

import sys
import tempfile
import threading
from pathlib import Path

REFRESH_SECONDS = 5


def main() -> None:
    from tensorboard import program  # takes a second to import

    arguments = sys.argv[1:]
    runs = Path("outputs")
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--logdir":
            runs = Path(value if equals else "".join(arguments[i + 1 : i + 2]))
            del arguments[i : i + (1 if equals else 2)]
            break
    with tempfile.TemporaryDirectory(prefix="vae-dashboard-") as folder:
        links, closed = Path(folder), threading.Event()
        link_runs(runs, links)

        def refresh() -> None:
            while not closed.wait(REFRESH_SECONDS):
                link_runs(runs, links)

        threading.Thread(target=refresh, daemon=True).start()
        tensorboard = program.TensorBoard()
        tensorboard.configure(["tensorboard", "--logdir", folder, *arguments])
        try:
            sys.exit(tensorboard.main())
        finally:
            closed.set()


def link_runs(runs: Path, links: Path) -> list[str]:
    """Make `links` name every run below `runs`, and return the names of the new ones.

    A run is a folder with event files in it or in its `tensorboard` folder. Links of deleted runs
    go; a run within another one is shown with it, by TensorBoard itself.
    """
    for link in [path for path in links.rglob("*") if path.is_symlink() and not path.exists()]:
        link.unlink()
    folders = {path.parent for path in runs.rglob("*tfevents*")} if runs.is_dir() else set()
    added = []
    for folder in sorted(folders, key=lambda folder: (len(folder.parts), folder)):
        run = folder.parent if folder.name == "tensorboard" else folder
        name = run.relative_to(runs) if run.is_relative_to(runs) and run != runs else Path(run.name)
        link = links / name
        if link.exists() or any(parent.is_symlink() for parent in link.parents):
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
        added.append(str(name))
    return added


if __name__ == "__main__":
    main()
