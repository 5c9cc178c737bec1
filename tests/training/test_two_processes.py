"""One run over two processes: the same metrics as one process, and the shares of each batch."""

import pytest
from conftest import run_vae, settings, timeless_metrics


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """397 + 103 images in batches that leave the second process an empty one, in training and in
    validation."""
    common = [
        "data=digits",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=2",
        "data.val_size=103",
        "threads=1",
    ]
    common += ["callbacks.chain=null", "callbacks.elbo_curves=null", "data.eval_batch_size=51"]
    common += [
        "objective=free_bits",
        "data.pixels=dequantised",
    ]  # which share a batch's mean and its noise
    two = run_vae(
        "train", *common, "trainer=ddp", "data.batch_size=18", f"hydra.run.dir={tmp_path / 'two'}"
    )
    assert two.returncode == 0, two.stderr
    from vae.train import train

    (tmp_path / "one").mkdir()
    train(settings(*common, "data.batch_size=36"), tmp_path / "one")
    one, both = timeless_metrics(tmp_path / "one"), timeless_metrics(tmp_path / "two")
    assert one.keys() == both.keys()
    assert both == pytest.approx(one, rel=1e-5)
    assert two.stdout.count("run folder:") == 1
    assert sorted(p.name for p in (tmp_path / "two").glob("*.log")) == ["train.log"]
    assert len(list((tmp_path / "two" / "figures").iterdir())) == 3

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "two" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("val/elbo")] == [
        e.step for e in events.Scalars("train/elbo")
    ]
    assert len(events.Scalars("val/elbo")) == 2
    assert len(events.Images("prior_samples")) == 1


@pytest.mark.parametrize(("images", "batch"), [(400, 21), (397, 18), (5, 2), (3, 4), (1, 1)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_each_batch_of_one_process(images, batch, ranks):
    import torch

    from vae.data.batches import IndexBatches

    def batches(size: int, rank: int = 0, world: int = 1) -> IndexBatches:
        return IndexBatches(torch.arange(images), size, shuffle_seed=3, rank=rank, world_size=world)

    shares = [batches(batch, rank, ranks) for rank in range(ranks)]
    one = batches(batch * ranks)
    assert {len(share) for share in shares} == {len(one)} == {len(list(one))}
    for (whole, size), *others in zip(one, *shares, strict=True):
        parts = [part for part, _ in others]
        assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
        assert {size} == {of_all for _, of_all in others} == {len(whole)}
        assert all(torch.equal(part, whole[rank::ranks]) for rank, part in enumerate(parts))
    assert sorted(torch.cat([index for index, _ in one]).tolist()) == list(range(images))
