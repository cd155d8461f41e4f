"""The pictures: images as HTML that holds them, with a link that saves them; no file is left behind."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from transfer import UserError
from transfer.drawing import stream
from transfer.images import grid
from transfer.shared import Source

PAUSE = 60  # ms for an image of an animation
NAMES = {"png": "PNG", "webp": "WebP"}


def row(source: Source, z: Tensor, columns: int | None = None) -> Image.Image:
    """The pictures of latents z (N, latent), side by side; with columns row by row."""
    return grid(torch.cat([*stream(source, z)]), columns or len(z))


def figure(pictures: Image.Image | list[Image.Image], caption: str, file: str = "") -> str:
    """A picture, or an animation of several, under its caption; file: its name when saved, without ending."""
    first, *rest = pictures if isinstance(pictures, list) else [pictures]
    kind, data = ("webp", io.BytesIO()) if rest else ("png", io.BytesIO())
    more = {"save_all": True, "append_images": rest, "duration": PAUSE, "loop": 0, "quality": 90}
    first.save(data, kind, **(more if rest else {"compress_level": 1}))
    uri = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
    what = escape(caption, quote=True)
    link = f'<a download="{escape(file, quote=True)}.{kind}" href="{uri}">Save as {NAMES[kind]}</a>'
    shown = f'<figcaption>{what}</figcaption><img src="{uri}" alt="{what}">'
    return f"<figure>{shown}{link if file else ''}</figure>"


def problem(sentence: object) -> str:
    """What is wrong, as the page shows it."""
    return f'<p class="problem">{escape(str(sentence))}</p>'


def told(draw: Callable[..., str]) -> Callable[..., str]:
    """The same function, with the sentence of a UserError in the place of what it returns."""

    @wraps(draw)
    def safe(*inputs: Any) -> str:
        try:
            return draw(*inputs)
        except UserError as error:
            return problem(error)

    return safe
