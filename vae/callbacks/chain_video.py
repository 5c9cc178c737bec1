"""The chain decode → sample → encode → sample of 64 chains: a video, a GIF, a figure."""

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

GIF_WIDTH, MP4_WIDTH = 240, 480  # pixels, about


class ChainVideo(FigureCallback):
    """64 chains from the latents of the prior samples; frames are f(z_t), t = 0 … `steps`.

    Scalars: `chain/finite` (1 where every latent and pixel stayed finite), `chain/drift` (nats from
    the prior at the last step), and `chain/spectral_radius`, exact for a linear encoder and
    decoder, or `chain/local_gain`, the median over visited states, for others.
    """

    name = "chain"
    shown = "videos/chain.gif"

    def __init__(self, every_n_epochs: int = 0, steps: int = 100) -> None:
        super().__init__(every_n_epochs)
        self.steps = steps
        self.final_metrics: dict[str, float] = {}
        self._encoder = ThreadPoolExecutor(1)  # other pictures need not wait for ffmpeg
        self._mp4: Future[None] | None = None

    def plot(self, trainer: L.Trainer, module: LitVAE, split: str) -> Figure:
        # 1. Simulate, and log what the chain showed; the final metrics go with all others.
        model = module.model
        start = prior_latents(CHAINS, model.latent_dim).to(module.device)
        trace = simulate(model, start, self.steps)
        self.final_metrics = trace.metrics
        if trainer.state.fn == "fit":
            for logger in trainer.loggers:
                logger.log_metrics(self.final_metrics, trainer.global_step)

        # 2. The animations.
        label = f"{model.name}  m = {model.latent_dim}  {model.likelihood.label}"
        pictures = [tile(frame, 8) for frame in trace.frames]
        folder = Path(trainer.default_root_dir) / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        self._wait_for_mp4()
        frames = titled(pictures, label, MP4_WIDTH)
        self._mp4 = self._encoder.submit(write_mp4, folder / "chain.mp4", frames)
        (folder / "chain.gif").write_bytes(gif(titled(pictures, label, GIF_WIDTH)))

        # 3. The figure.
        title = self.title(trainer, module, describe_chain(self.final_metrics))
        return chain_figure(title, trace.frames, trace.drifts, trace.mixing.steps)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        with self.failures_counted():
            self._wait_for_mp4()

    def _wait_for_mp4(self) -> None:
        """Raises what its encoding raised."""
        mp4, self._mp4 = self._mp4, None
        if mp4 is not None:
            mp4.result()


def describe_chain(metrics: dict[str, float]) -> str:
    """Whether the chains stayed finite and what drives them, of `chain/…` metrics, in a line."""
    finite = "finite" if metrics["chain/finite"] else "NOT finite"
    if "chain/spectral_radius" in metrics:
        return f"{CHAINS} chains, {finite}, spectral radius {metrics['chain/spectral_radius']:.3f}"
    return f"{CHAINS} chains, {finite}, median local gain {metrics['chain/local_gain']:.3f}"
