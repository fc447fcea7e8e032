"""A program: an image on its input; on its output a line of JSON, {"kind": …} or {"error": name}, and the image anew.
Run by chat.images alone.

Owns its own limits: a file made to be endless, or to unpack into gigabytes, ends this process and nothing else. Of what
came only the pixels are kept, so that nobody is told where it was taken, when, or by which camera. Must import nothing
of ours.
"""

from __future__ import annotations

import io
import json
import resource
import sys

from PIL import Image, ImageOps

CPU_SECONDS = 8
MEMORY = 1024 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MOST_PIXELS = 50_000_000
# Providers make larger ones smaller themselves; more would only be sent, and stored, for nothing.
LONGEST_SIDE = 2_048
MOST_BYTES = 1024 * 1024
# Tried in this order until one is small enough.
_AS_JPEG = ((LONGEST_SIDE, 85), (LONGEST_SIDE, 60), (1_024, 60), (512, 60))


def main() -> tuple[dict[str, str], bytes]:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        return _made_anew(sys.stdin.buffer.read())
    except (MemoryError, Image.DecompressionBombError):
        return {"error": "pixels"}, b""
    # Of a broken file it raises whatever the broken part leads to.
    except Exception:
        return {"error": "broken"}, b""


def _made_anew(raw: bytes) -> tuple[dict[str, str], bytes]:
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:  # its head says so, and nothing is unpacked yet
            return {"error": "pixels"}, b""
        is_photo = image.format in ("JPEG", "MPO")
        image.draft(None, (LONGEST_SIDE, LONGEST_SIDE))
        pixels = _pixels(image)
    pixels.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    pixels = ImageOps.exif_transpose(pixels)  # by which side is up, before that is forgotten
    pixels.info.clear()
    if not is_photo and len(data := _saved(pixels, "PNG")) <= MOST_BYTES:
        return {"kind": "png"}, data
    return {"kind": "jpeg"}, _as_jpeg(pixels)


def _pixels(image: Image.Image) -> Image.Image:
    """The first frame, in one of two modes."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which are cut off rather than made fewer
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _as_jpeg(pixels: Image.Image) -> bytes:
    """On white where it can be seen through."""
    if pixels.mode == "RGBA":
        white = Image.new("RGB", pixels.size, "white")
        white.paste(pixels, mask=pixels)
        pixels = white
    data = b""
    for side, quality in _AS_JPEG:
        pixels.thumbnail((side, side))
        data = _saved(pixels, "JPEG", quality=quality)
        if len(data) <= MOST_BYTES:
            break
    return data


def _saved(pixels: Image.Image, form: str, **how: int) -> bytes:
    into = io.BytesIO()
    pixels.save(into, form, **how)
    return into.getvalue()


if __name__ == "__main__":
    said, made = main()
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n" + made)
