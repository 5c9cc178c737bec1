"""The chain as an animation: labelled frames, GIF bytes, an MP4 file."""

import io
import subprocess
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

MILLISECONDS = 100  # per frame


FONT = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def titled(pictures: list[np.ndarray], label: str, scale: int) -> np.ndarray:
    """Grey pictures [h, w] enlarged, the step and a label above each: uint8 [T, 16 scale + scale h,
    scale w]."""
    height, width = (scale * side for side in pictures[0].shape)
    font = FONT.font_variant(size=5 + 5 * scale)
    frames = np.empty((len(pictures), 16 * scale + height, width), np.uint8)
    for step, (picture, frame) in enumerate(zip(pictures, frames, strict=True)):
        head = Image.new("L", (width, 16 * scale), 255)
        ImageDraw.Draw(head).text(
            (3 * scale, 2 * scale), f"step {step}   {label}", fill=0, font=font
        )
        frame[: 16 * scale] = head
        frame[16 * scale :] = picture.repeat(scale, 0).repeat(scale, 1)
    return frames


def gif(frames: np.ndarray) -> bytes:
    """Frames uint8 [T, h, w] as an endless animation in 16 grey levels; no two are alike, so none
    are merged.

    Small, as TensorBoard takes half a second for the checksum of 4 MB.
    """
    buffer = io.BytesIO()
    levels = [(grey + 8) // 17 * 17 for grey in range(256)]
    first, *others = (Image.fromarray(frame).point(levels) for frame in frames)
    # Pillow itself: through imageio it would take twice as long
    first.save(
        buffer,
        "GIF",
        save_all=True,
        append_images=others,
        duration=MILLISECONDS,
        loop=0,
        optimize=True,
    )
    return buffer.getvalue()


def write_mp4(path: Path, frames: np.ndarray) -> None:
    """Frames uint8 [T, h, w] as H.264, by the ffmpeg of imageio-ffmpeg. Raises OSError where it
    fails."""
    shape = f"{frames.shape[2]}x{frames.shape[1]}"
    given = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-s",
        shape,
        "-r",
        str(1000 / MILLISECONDS),
        "-i",
        "-",
    ]
    made = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "25", "-pix_fmt", "yuv420p"]
    # All frames in one write, and no fork of a large process as in imageio's writer: it runs beside
    # other work.
    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", *given, *made, str(path)]
    done = subprocess.run(command, input=frames.data.cast("B"), capture_output=True)
    if done.returncode != 0:
        raise OSError(f"ffmpeg: {done.stderr.decode(errors='replace').strip()}")
