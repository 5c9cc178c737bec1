"""The dashboard names runs by their folders, without /tensorboard at the end."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from vae.dashboard import link_runs


def write_events(folder: Path) -> None:
    writer = EventFileWriter(str(folder))
    writer.close()


def test_links_are_named_by_the_run_and_follow_what_comes_and_goes(tmp_path: Path):
    runs, links = tmp_path / "outputs", tmp_path / "links"
    links.mkdir()
    assert link_runs(runs, links) == []  # no folder of runs yet
    write_events(runs / "2030-01-31" / "12-00-00-deep" / "tensorboard")
    write_events(runs / "own" / "version_0")  # a LitVAE under one's own Trainer
    assert link_runs(runs, links) == ["own/version_0", "2030-01-31/12-00-00-deep"]
    assert link_runs(runs, links) == []
    deep = links / "2030-01-31" / "12-00-00-deep"
    assert deep.resolve() == (runs / "2030-01-31" / "12-00-00-deep" / "tensorboard").resolve()
    for path in deep.iterdir():
        path.unlink()
    (runs / "2030-01-31" / "12-00-00-deep" / "tensorboard").rmdir()
    link_runs(runs, links)
    assert not deep.is_symlink()


def test_a_run_within_a_run_writes_no_link_into_it(tmp_path: Path):
    runs, links = tmp_path / "outputs", tmp_path / "links"
    links.mkdir()
    write_events(runs / "a")
    write_events(runs / "a" / "b")
    assert link_runs(runs, links) == ["a"]
    assert [path.name for path in (runs / "a").iterdir() if path.is_symlink()] == []


@pytest.mark.slow
def test_the_dashboard_shows_short_names_and_new_runs(tmp_path: Path):
    write_events(tmp_path / "outputs" / "2030-01-31" / "12-00-00-deep" / "tensorboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vae.dashboard", "--logdir", "outputs", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--reload_interval=1"], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert wait_for_runs(port, 1) == ["2030-01-31/12-00-00-deep"]
            write_events(tmp_path / "outputs" / "2030-01-31" / "12-01-00-baseline" / "tensorboard")
            found = wait_for_runs(port, 2)
            assert found == ["2030-01-31/12-00-00-deep", "2030-01-31/12-01-00-baseline"]
        finally:
            server.terminate()


def wait_for_runs(port: int, count: int) -> list[str]:
    found: list[str] = []
    for _ in range(60):
        time.sleep(1)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs") as answer:
                found = json.load(answer)
        except OSError:
            continue
        if len(found) == count:
            break
    return sorted(found)
