"""The chain decode → sample → encode → sample of 64 chains as an 8×8 video, as a strip, in
figures."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lightning.pytorch as L
from matplotlib.figure import Figure

from vae.analysis.chain import CHAINS, prior_latents, simulate
from vae.callbacks.figure import FigureCallback
from vae.plots.curves import chain_figure
from vae.plots.images import tile
from vae.plots.video import gif, titled, write_mp4
from vae.training.module import LitVAE


class ChainVideo(FigureCallback):
    """64 chains from the codes of the prior samples; frames are the decoder's means f(z_t), t = 0 …
    `steps`.

    Scalars: `chain/finite` (1 where every latent and pixel stayed finite), `chain/drift` (nats from
    the prior at the last step), `chain/spectral_radius` (exact for a linear pair, the median local
    gain for others).
    """

    name = "chain"
    shown = "videos/chain.gif"

    def __init__(self, every_n_epochs: int = 0, steps: int = 100) -> None:
        super().__init__(every_n_epochs)
        self.steps = steps
        self.final_metrics: dict[str, float] = {}
        self._beside = ThreadPoolExecutor(
            1
        )  # ffmpeg is a process of its own: other pictures need not wait for it
        self._mp4: Future[None] | None = None

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        start = prior_latents(CHAINS, task.model.latent_dim).to(task.device)
        trace = simulate(task.model, start, self.steps)
        frames, drifts, self.final_metrics = trace.frames, trace.drifts, trace.metrics
        if trainer.state.fn == "fit":  # the final ones are logged with all final figures
            for logger in trainer.loggers:
                logger.log_metrics(self.final_metrics, trainer.global_step)

        label = f"{task.model.name}  m = {task.model.latent_dim}  {task.model.likelihood.label}"
        pictures = [tile(frame, 8) for frame in frames]
        folder = Path(trainer.default_root_dir) / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        self._wait_for_mp4()
        self._mp4 = self._beside.submit(write_mp4, folder / "chain.mp4", titled(pictures, label, 2))
        (folder / "chain.gif").write_bytes(gif(titled(pictures, label, 1)))
        mixing = task.oracle.mixing_steps if task.oracle is not None else None
        return chain_figure(self.title(trainer, task, self._verdict()), frames, drifts, mixing)

    def teardown(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        with self.failures_counted():
            self._wait_for_mp4()

    def _wait_for_mp4(self) -> None:
        """Raises what its encoding raised."""
        mp4, self._mp4 = self._mp4, None
        if mp4 is not None:
            mp4.result()

    def _verdict(self) -> str:
        kept = "finite" if self.final_metrics["chain/finite"] else "NOT finite"
        names = {
            "chain/spectral_radius": "spectral radius",
            "chain/local_gain": "median local gain",
        }
        radius = next(f"{names[k]} {v:.3f}" for k, v in self.final_metrics.items() if k in names)
        return f"64 chains, {kept}, {radius}"
