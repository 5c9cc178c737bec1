"""What the callbacks leave on the dashboard, and that a picture which fails ends no run."""

from pathlib import Path

import imageio.v3 as iio
import pytest
from conftest import FIGURES, NO_PICTURES, ShortRun, settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae.train import train


@pytest.fixture(scope="session")
def events(short_run: ShortRun) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(short_run.folder / "tensorboard"), {"images": 0, "histograms": 0}
    )
    accumulator.Reload()
    return accumulator


def test_tags_on_the_dashboard(short_run: ShortRun, events: EventAccumulator):
    tags = events.Tags()
    curves = {
        f"{split}/{term}" for split in ("train", "val") for term in ("elbo", "log_likelihood", "kl")
    }
    curves |= {"train/objective", "val/collapsed"}
    final = {
        "test/elbo",
        "test/log_likelihood",
        "test/kl",
        "test/collapsed",
        "test/inactive",
        "final/val/elbo",
    }
    final |= {
        "oracle/train_elbo",
        "oracle/val_elbo",
        "oracle/test_elbo",
        "oracle/collapsed",
        "time/fit_seconds",
    }
    final |= {"chain/finite", "chain/drift", "chain/spectral_radius", "model/encoder_parameters"}
    assert curves | final <= set(tags["scalars"])
    for tag in curves:  # one point an epoch, at the step of its last batch: 400 images by 128
        assert [point.step for point in events.Scalars(tag)] == [3, 7]
    for tag in ("test/elbo", "test/kl", "oracle/test_elbo"):
        (point,) = events.Scalars(tag)
        assert point.value == pytest.approx(short_run.metrics[tag], rel=1e-6)
    assert {*FIGURES} - {"chain"} <= set(tags["images"])
    assert [h.step for h in events.Histograms("posterior_collapse/kl_per_latent")] == [
        4,
        8,
    ]  # val, then test
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(
        events.summary_metadata
        if hasattr(events, "summary_metadata")
        else events.PluginTagToContent("hparams")
    )


def test_the_chain_plays_on_the_dashboard(short_run: ShortRun, events: EventAccumulator):
    """The image summary is the GIF itself: 101 frames, the step of each in its title, the run
    folder's bytes."""
    picture = events.Images("chain")[-1].encoded_image_string
    assert picture[:6] == b"GIF89a"
    assert picture == (short_run.folder / "videos" / "chain.gif").read_bytes()
    frames = iio.imread(picture, extension=".gif", index=None)
    assert len(frames) == 101
    assert all((frames[t] != frames[t + 1]).any() for t in range(100))
    assert len(iio.imread(short_run.folder / "videos" / "chain.mp4", plugin="FFMPEG")) == 101


def test_a_video_that_cannot_be_written_is_reported_and_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "videos" / "chain.mp4").mkdir(parents=True)
    overrides = [o for o in NO_PICTURES if "chain" not in o]
    train(settings(*overrides, "trainer.max_epochs=1", "callbacks.chain.steps=2"), tmp_path)
    (message,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert message.startswith("callbacks.chain: no picture (OSError: ")
    assert (tmp_path / "videos" / "chain.gif").exists()
    assert (tmp_path / "metrics.json").exists()


def test_a_failed_picture_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "figures").write_text("a file where the folder should be")
    overrides = [o for o in NO_PICTURES if "reconstructions" not in o]
    config = settings(
        *overrides, "trainer.max_epochs=2", "callbacks.reconstructions.every_n_epochs=1"
    )
    assert train(config, tmp_path)["test/elbo"] < 0
    warnings = [
        record for record in caplog.records if "reconstructions: no picture" in record.message
    ]
    assert len(warnings) == 1
