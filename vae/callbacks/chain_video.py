"""The chain decode → sample → encode → sample of 64 chains as an 8×8 video, as a strip, in figures."""

import io
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from imageio_ffmpeg import get_ffmpeg_exe
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
FONT = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


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
        self._beside = ThreadPoolExecutor(1)  # ffmpeg is a process of its own: other pictures need not wait for it
        self._mp4: Future[None] | None = None

    def draw(self, trainer: L.Trainer, task: LitVAE, split: str) -> Figure:
        start = prior_codes(CHAINS, task.model.latent_dim).to(task.device)
        course = follow(task.model, start, self.steps, self.generator(task.device))
        frames, drifts, self.figures = course.frames, course.drifts, course.figures
        if trainer.state.fn == "fit":  # the final ones are logged with all final figures
            for logger in trainer.loggers:
                logger.log_metrics(self.figures, trainer.global_step)

        label = f"{task.model.name}  m = {task.model.latent_dim}  {task.model.likelihood.label}"
        pictures = [tile(frame, 8) for frame in frames]
        folder = Path(trainer.default_root_dir) / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        self._wait_for_mp4()
        self._mp4 = self._beside.submit(write_mp4, folder / "chain.mp4", titled(pictures, label, 2))
        (folder / "chain.gif").write_bytes(gif(titled(pictures, label, 1)))
        mixing = task.oracle.mixing_steps if task.oracle is not None else None
        return draw_strip(self.title(trainer, task, self._verdict()), frames, drifts, mixing)

    def teardown(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        with self.failures_counted():
            self._wait_for_mp4()

    def _wait_for_mp4(self) -> None:
        """Raises what its encoding raised."""
        mp4, self._mp4 = self._mp4, None
        if mp4 is not None:
            mp4.result()

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


def titled(pictures: list[np.ndarray], label: str, scale: int) -> np.ndarray:
    """Grey pictures [h, w] enlarged, the step and a label above each: uint8 [T, 16 scale + scale h, scale w]."""
    height, width = (scale * side for side in pictures[0].shape)
    font = FONT.font_variant(size=5 + 5 * scale)
    frames = np.empty((len(pictures), 16 * scale + height, width), np.uint8)
    for step, (picture, frame) in enumerate(zip(pictures, frames, strict=True)):
        head = Image.new("L", (width, 16 * scale), 255)
        ImageDraw.Draw(head).text((3 * scale, 2 * scale), f"step {step}   {label}", fill=0, font=font)
        frame[: 16 * scale] = head
        frame[16 * scale :] = picture.repeat(scale, 0).repeat(scale, 1)
    return frames


def gif(frames: np.ndarray) -> bytes:
    """Frames uint8 [T, h, w] as an endless animation in 16 grey levels; no two are alike, so none are merged.

    Small, as TensorBoard takes half a second for the checksum of 4 MB.
    """
    buffer = io.BytesIO()
    levels = [(grey + 8) // 17 * 17 for grey in range(256)]
    first, *others = (Image.fromarray(frame).point(levels) for frame in frames)
    # Pillow itself: through imageio it would take twice as long
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=True)
    return buffer.getvalue()


def write_mp4(path: Path, frames: np.ndarray) -> None:
    """Frames uint8 [T, h, w] as H.264, by the ffmpeg of imageio-ffmpeg. Raises OSError where it fails."""
    shape = f"{frames.shape[2]}x{frames.shape[1]}"
    given = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", shape, "-r", str(1000 / MILLISECONDS), "-i", "-"]
    made = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "25", "-pix_fmt", "yuv420p"]
    # All frames in one write, and no fork of a large process as in imageio's writer: it runs beside other work.
    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", *given, *made, str(path)]
    done = subprocess.run(command, input=frames.data.cast("B"), capture_output=True)
    if done.returncode != 0:
        raise OSError(f"ffmpeg: {done.stderr.decode(errors='replace').strip()}")
