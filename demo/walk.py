"""The tab that walks: from one latent to another, by a slider or as an animation."""

from __future__ import annotations

from functools import partial

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from demo.controls import Event, another, model_chooser, on_click, redraw, seed_chooser
from demo.models import Shelf
from demo.pictures import figure, row
from transfer import drawing
from transfer.shared import Source

PLACES = 100  # of the slider
STEPS = 24  # pictures of the animation, each way


def ends(source: Source, first: int, second: int) -> Tensor:
    """The latents (2, latent) of two seeds."""
    return torch.cat([drawing.latents(source, 1, seed) for seed in (first, second)])


def between(shelf: Shelf, name: str, first: int, second: int, place: int) -> str:
    """HTML of the first picture, the one at this place on the way, and the second. Raises UserError."""
    source = shelf.model(name)
    z = ends(source, first, second)
    z = torch.stack([z[0], drawing.walk(z, PLACES)[place], z[1]])
    labels = ("First", f"At {place} %", "Second")
    pictures = (row(source, each[None]) for each in z)
    return f'<div class="three">{"".join(map(figure, pictures, labels))}</div>'


def animation(shelf: Shelf, name: str, first: int, second: int) -> str:
    """HTML of the way there and back as an animation. Raises UserError."""
    source = shelf.model(name)
    way = drawing.stream(source, drawing.walk(ends(source, first, second), STEPS))
    frames = [Image.fromarray(image.permute(1, 2, 0).numpy()) for images in way for image in images]
    return figure(frames, f"from seed {first} to seed {second} and back", f"walk-{first}-{second}")


def build(shelf: Shelf) -> list[Event]:
    """Put the tab's content together; returns what is to happen whenever it is opened."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(
                "Between two latents there are others, and the generator draws all of them. Drag the slider:"
                " the first picture turns into the second step by step."
            )
            model, renew = model_chooser(shelf)
            with gr.Row():
                first, second = seed_chooser("First seed"), seed_chooser("Second seed", 1)
            another(second, "Another second picture")
            place = gr.Slider(0, PLACES, PLACES // 2, step=1, label="Place on the way, in %")
            make = gr.Button("Make an animation")
        with gr.Column(scale=3, min_width=280, elem_classes="pictures"):
            shown = gr.HTML(elem_classes="shown")
            moving = gr.HTML(elem_classes="shown small")
    inputs = [model, first, second, place]
    on_click(make, inputs[:3], partial(animation, shelf), moving)
    return [renew, redraw(inputs, partial(between, shelf), shown)]
