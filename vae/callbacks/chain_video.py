"""The chain decode → sample → encode → sample of 64 chains as an 8×8 video, as a strip, in figures."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio.v3 as iio
import lightning.pytorch as L
import numpy as np
import torch
from matplotlib import get_data_path
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vae.callbacks.picture import Picture
from vae.callbacks.prior_samples import prior_codes
from vae.chain import follow
from vae.figures import TRAIN, new_figure, tile
from vae.module import LitVAE

CHAINS = 64
MILLISECONDS = 100  # per frame
FONT = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 15)


class ChainVideo(Picture):
    """64 chains from the codes of the prior samples; frames are the decoder's means f(z_t), t = 0 … `steps`.

    Scalars: `chain/finite` (1 where every latent and pixel stayed finite), `chain/drift` (nats from the prior at
    the last step), `chain/spectral_radius` (exact for a linear pair, the median local gain for others).
    """

    name = "chain"
    shown = "videos/chain.gif"

    def __init__(self, every_n_epochs: int = 0, steps: int = 100) -> None:
        super().__init__(every_n_epochs)
        self.steps = steps
        self.figures: dict[str, float] = {}

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        start = prior_codes(CHAINS, task.model.latent_dim).to(task.device)
        course = follow(task.model, start, self.steps, self.generator(task.device))
        frames, drifts, self.figures = course.frames, course.drifts, course.figures
        if trainer.state.fn == "fit":  # the final ones are logged with all final figures
            for logger in trainer.loggers:
                logger.log_metrics(self.figures, trainer.global_step)

        label = f"{task.model.name}  m = {task.model.latent_dim}  {task.model.likelihood.label}"
        video = [titled(tile(frame, 8), f"{label}   step {t}") for t, frame in enumerate(frames)]
        folder = Path(trainer.default_root_dir) / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1) as pool:  # ffmpeg is a process of its own
            mp4 = pool.submit(write_mp4, folder / "chain.mp4", video)
            (folder / "chain.gif").write_bytes(gif(video))
            mp4.result()
        mixing = task.oracle.mixing_steps if task.oracle is not None else None
        return draw_strip(self.title(trainer, task, self._verdict()), frames, drifts, mixing)

    def _verdict(self) -> str:
        kept = "finite" if self.figures["chain/finite"] else "NOT finite"
        return f"64 chains, {kept}, spectral radius {self.figures['chain/spectral_radius']:.3f}"


def draw_strip(title: str, frames: list[Tensor], drifts: list[float], mixing: float | None) -> Figure:
    """Eight chains at some of their steps, and the drift of all from the prior over the steps."""
    figure = new_figure(10, 4.6, title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.13, top=0.86, wspace=0.15)
    steps = np.unique(np.geomspace(1, len(frames), 8).astype(int) - 1)
    left.imshow(tile(torch.cat([frames[t][:8] for t in steps]), 8), cmap="gray", vmin=0, vmax=255, aspect="equal")
    left.set_yticks([14 + 30 * i for i in range(len(steps))], [f"t = {t}" for t in steps])
    left.set_xticks([])
    left.set_xlabel("eight of the chains")
    left.tick_params(length=0)
    right.plot(drifts, color=TRAIN)
    right.axhline(drifts[0], color="grey", linestyle=":", label="64 draws from the prior itself")
    steps_needed = "" if mixing is None else f" (the best linear pair forgets its start in about {mixing:.0f})"
    right.set_xlabel(f"step t{steps_needed}")
    right.set_ylabel("KL(moments of z_t ‖ prior), nats")
    right.grid(alpha=0.3)
    right.legend()
    return figure


def titled(picture: np.ndarray, text: str, scale: int = 2) -> Image.Image:
    """A grey picture enlarged, below a line of text; even sides, as video codecs want."""
    height, width = (scale * side for side in picture.shape)
    head = 28
    frame = Image.new("L", (width + width % 2, head + height + height % 2), 255)
    ImageDraw.Draw(frame).text((6, 5), text, fill=0, font=FONT)
    frame.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (0, head))
    return frame


def gif(frames: list[Image.Image]) -> bytes:
    """An endless animation in 16 grey levels; each frame carries its step, so none are merged."""
    buffer = io.BytesIO()
    levels = ((np.arange(256) + 8) // 17 * 17).astype(np.uint8)  # of each grey
    pixels = np.stack([levels[np.asarray(frame)] for frame in frames])
    iio.imwrite(buffer, pixels, extension=".gif", plugin="pillow", duration=MILLISECONDS, loop=0)
    return buffer.getvalue()


def write_mp4(path: Path, frames: list[Image.Image]) -> None:
    pixels = np.stack([np.asarray(frame) for frame in frames])
    rate = 1000 / MILLISECONDS
    preset = ["-preset", "ultrafast"]
    iio.imwrite(
        path, pixels, plugin="FFMPEG", fps=rate, codec="libx264", quality=5, macro_block_size=2, output_params=preset
    )
