"""The controls that several tabs have, and how a tab's pictures follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gradio as gr

from demo.models import Shelf
from demo.pictures import told

MOST = 2**32 - 1  # of a seed
ONE = {  # drawings wait for each other; of a slider that is dragged only the last place counts
    "concurrency_id": "draw",
    "concurrency_limit": 1,
    "trigger_mode": "always_last",
    "show_progress": "hidden",
    "api_visibility": "private",
}
Event = tuple[Callable, Sequence | None, object]  # what is called, with which inputs, for which output


def choices(of: dict[str, str]) -> list[tuple[str, str]]:
    """A shelf's names as a dropdown has them: what is shown, and the value."""
    return [(shown, name) for name, shown in of.items()]


def model_chooser(shelf: Shelf) -> tuple[gr.Dropdown, Event]:
    """A dropdown of the models that are there, and what brings it up to date."""
    found = shelf.look().models
    model = gr.Dropdown(choices(found), value=next(iter(found), None), label="Model")
    return model, (lambda: gr.Dropdown(choices(shelf.look().models)), None, model)


def seed_chooser(label: str = "Seed", value: int = 0) -> gr.Number:
    """A seed, as a number that can be typed."""
    return gr.Number(value, label=label, precision=0, minimum=0, maximum=MOST, min_width=100)


def another(seed: gr.Number, label: str) -> gr.Button:
    """A button that goes on to the next seed."""
    button = gr.Button(label, variant="primary")
    button.click(
        lambda number: int(number or 0) % MOST + 1, seed, seed, queue=False, api_visibility="private"
    )
    return button


def redraw(inputs: Sequence, draw: Callable[..., str], shown: gr.HTML) -> Event:
    """Redraw whenever an input changes; returns what draws for the first time."""
    draw = _given(inputs, draw)
    gr.on([each.change for each in inputs], draw, inputs, shown, **ONE)
    return draw, inputs, shown


def on_click(button: gr.Button, inputs: Sequence, draw: Callable[..., str], shown: gr.HTML) -> None:
    """Draw when a button is pressed, which may take seconds."""
    button.click(
        _given(inputs, draw), inputs, shown, **{**ONE, "trigger_mode": "once", "show_progress": "minimal"}
    )


def _given(inputs: Sequence, draw: Callable[..., str]) -> Callable[..., str]:
    """The same, with 0 for a number that a person has cleared, and with the sentence of a UserError."""

    def safe(*values: object) -> str:
        pairs = zip(inputs, values, strict=True)
        return told(draw)(*(0 if v is None and isinstance(each, gr.Number) else v for each, v in pairs))

    return safe
