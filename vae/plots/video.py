"""The chain as an animation: labelled frames, GIF bytes, an MP4 file."""

import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

MILLISECONDS = 100  # per frame

FONT = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def titled(pictures: list[np.ndarray], label: str, width: int) -> np.ndarray:
    """Pictures enlarged to about `width` pixels, the step and a label above each.

    Takes grey [h, w] or coloured [h, w, 3] pictures, uint8; gives frames [T, H, W] or [T, H, W, 3].
    """
    h, w = pictures[0].shape[:2]
    scale = max(1, round(width / w))
    head = max(16, width // 15)  # height of the title
    font = fitting_font(f"step {len(pictures) - 1}   {label}", scale * w - 6, head * 5 // 8)
    frames = np.full((len(pictures), head + scale * h, scale * w, *pictures[0].shape[2:]), 255)
    frames = frames.astype(np.uint8)
    for step, (picture, frame) in enumerate(zip(pictures, frames, strict=True)):
        title = Image.new("L", (scale * w, head), 255)
        ImageDraw.Draw(title).text((3, head // 8), f"step {step}   {label}", fill=0, font=font)
        frame[:head] = np.asarray(title).reshape(head, scale * w, *(1,) * (frame.ndim - 2))
        frame[head:] = picture.repeat(scale, 0).repeat(scale, 1)
    return frames


def fitting_font(text: str, width: int, size: int) -> ImageFont.FreeTypeFont:
    """The font at this size in pixels, or smaller where the text would be wider than `width`."""
    font = FONT.font_variant(size=size)
    return font.font_variant(size=max(6, int(size * min(1.0, width / font.getlength(text)))))


def gif(frames: np.ndarray) -> bytes:
    """Frames uint8 [T, H, W] or [T, H, W, 3] as an endless animation in 16 greys or 64 colours.

    Small, as TensorBoard takes half a second for the checksum of 4 MB. No two frames are alike (the
    step is in the title), so none are merged.
    """
    buffer = io.BytesIO()
    levels = [(grey + 8) // 17 * 17 for grey in range(256)]
    images = [Image.fromarray(frame) for frame in frames]
    if images[0].mode == "L":
        images = [image.point(levels) for image in images]
    else:
        images = [image.quantize(64) for image in images]
    # Pillow itself: through imageio it would take twice as long
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=MILLISECONDS,
        loop=0,
        optimize=True,
    )
    return buffer.getvalue()


def write_mp4(path: Path, frames: np.ndarray) -> None:
    """Write frames uint8 [T, H, W] or [T, H, W, 3] as H.264; raises OSError where that fails."""
    padding = [(0, 0)] * frames.ndim
    for axis in (1, 2):  # H.264 takes even heights and widths only
        padding[axis] = (0, frames.shape[axis] % 2)
    frames = np.pad(frames, padding, constant_values=255)
    try:
        iio.imwrite(
            path,
            frames,
            plugin="FFMPEG",
            extension=".mp4",
            is_batch=True,
            fps=1000 / MILLISECONDS,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-preset", "ultrafast", "-crf", "25"],
        )
    except Exception as error:  # imageio's own kinds, also where there is no ffmpeg
        raise OSError(f"{path} cannot be encoded: {' '.join(str(error).split())}") from error
