"""The tab that trains: from a folder of images to a run, and how far each run is."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from demo.controls import Event, choices
from demo.models import Shelf
from demo.pictures import figure, problem
from demo.runs import Starter, State, stop
from transfer import UserError
from transfer.record import in_words

WAYS = {  # scripts, as a newcomer would ask for them
    "methods/projected_critic.py": "Best pictures: a critic that sees",
    "wgan_64_scale_shift.py": "Scale and shift: a small adapter, good to mix",
    "wgan_64_transferlearning.py": "The combination of the dissertation",
    "wgan_64_finetune.py": "Fine-tune every layer",
    "wgan_64_freeze_layers.py": "Freeze some layers, fine-tune the rest",
}
COLOURS = ("#2563eb", "#f97316", "#16a34a", "#9333ea", "#dc2626", "#0891b2")
EVERY = 2  # seconds between two looks at a run
NEVER = "No run yet: choose images and press Start."


def status(state: State) -> str:
    """HTML of how far a run is."""
    done = state.step >= state.iterations
    if state.process is not None:
        left = state.seconds_left
        told = "the time left is known soon" if left is None else f"about {in_words(left)} left"
        now = "finishing" if done else f"running, {told}"
    else:
        now = "finished" if done else "stopped"
    warning = problem(f"Warning: {state.warning}") if state.warning else ""
    share = min(100, 100 * state.step / state.iterations)
    bar = f'<div class="bar"><div style="width: {share:.1f}%"></div></div>'
    return f"{bar}<p>Iteration {state.step:,} of {state.iterations:,}: {now}.</p>{warning}"


def samples(state: State) -> str:
    """HTML of the newest grid."""
    if state.grid is None:
        return ""
    try:
        with Image.open(state.grid) as grid:
            return figure(grid.convert("RGB"), f"Samples of iteration {int(state.grid.stem):,}")
    except OSError:  # it is being written
        return ""


def losses(state: State) -> str:
    """HTML of the losses as curves over the iterations."""
    if not state.losses:
        return ""
    values, wide, high = [each["value"] for each in state.losses], 600, 300
    low, top, last = min(0, *values), max(0, *values), max(each["iteration"] for each in state.losses)
    curves, names = "", []
    for name, colour in zip(dict.fromkeys(each["loss"] for each in state.losses), COLOURS, strict=False):
        points = " ".join(
            f"{wide * each['iteration'] / last:.1f},{high * (top - each['value']) / (top - low or 1):.1f}"
            for each in state.losses
            if each["loss"] == name
        )
        curves += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        names.append(
            f'<span style="white-space: nowrap"><span style="color: {colour}">■</span> {escape(name)}</span>'
        )
    zero = high * top / (top - low or 1)
    ticks = [(0, top), (high, low)] + [(zero, 0)] * (20 < zero < high - 20)
    marks = "".join(
        f'<text x="-6" y="{y + 4:.0f}" text-anchor="end">{value:.2g}</text>' for y, value in ticks
    )
    marks += f'<text x="{wide}" y="{high + 22}" text-anchor="end">iteration {last:,}</text>'
    frame = (
        f'<path d="M0 0V{high}H{wide}M0 {zero:.0f}H{wide}" fill="none" stroke="currentColor" opacity="0.4"/>'
    )
    return (
        f"<figure><figcaption>Losses, which need not fall: {', '.join(names)}</figcaption>"
        f'<svg viewBox="-60 -14 670 346" role="img" aria-label="Losses">{frame}{curves}{marks}</svg></figure>'
    )


def build(shelf: Shelf) -> list[Event]:
    """Put the tab's content together; returns what is to happen whenever it is opened."""
    starter, found = Starter(), shelf.images()
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(
                "Train on images of your own: put a folder or a zip of about a hundred into `train_images/`,"
                " choose it here, and press Start. The run is a program of its own: it goes on when the page"
                " is closed."
            )
            images = gr.Dropdown(
                choices(found),
                value=next(iter(found), None),
                label="Images",
                info="or type the path of a folder or a zip",
                allow_custom_value=True,
            )
            way = gr.Dropdown(choices(WAYS), value=next(iter(WAYS)), label="How")
            iterations = gr.Number(1000, label="Iterations", precision=0, minimum=1, maximum=10**7)
            begin = gr.Button("Start", variant="primary")
            line = copyable("The command that Start runs", visible=True)
            said = gr.HTML()
        with gr.Column(scale=3, min_width=280):
            run = gr.Dropdown(
                [], label="Run", info="newest first; those that a terminal has started are here as well"
            )
            now = gr.HTML(elem_classes="shown")
            end = gr.Button("Stop and save", variant="stop", visible=False)
            on = gr.Button("Go on", variant="primary", visible=False)
            with gr.Row():
                with gr.Column(min_width=280):
                    grid = gr.HTML(elem_classes="shown")
                with gr.Column(min_width=280):
                    plot = gr.HTML(elem_classes="shown")
            ran, more = copyable("The command of this run"), copyable("The command that goes on with it")
    seen = gr.State()  # what is shown, so that nothing flickers while nothing changes
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def would_run(folder: str | None, script: str, count: int | None) -> str:
        try:
            return starter.line(_way(script), _images(shelf, folder), int(count or 1))
        except UserError as error:
            return str(error)

    def start(folder: str | None, script: str, count: int | None) -> str:
        try:
            starter.start(starter.line(_way(script), _images(shelf, folder), int(count or 1)))
        except UserError as error:
            return problem(error)
        return "<p>Starting: the images are read and the networks are made, which takes some seconds.</p>"

    def resume(name: str | None) -> str:
        try:
            starter.start(State.of(shelf.path(name or "")).resume)
        except UserError as error:
            return problem(error)
        return "<p>Going on: the run is read again, which takes some seconds.</p>"

    def halt(name: str | None) -> str:
        try:
            stop(shelf.path(name or ""))
        except UserError as error:
            return problem(error)
        return "<p>The run ends its iteration, saves, and stops.</p>"

    def look(name: str | None, before: object) -> dict:
        runs, note = shelf.runs(), {}
        try:
            if own := starter.found(map(shelf.path, runs)):
                name, note = shelf.name(own), {said: ""}
        except UserError as error:
            note = {said: problem(error)}
        name = name if name in runs else next(iter(runs), None)
        try:
            state: State | str = State.of(shelf.path(name)) if name else NEVER
        except UserError as error:
            state = str(error)
        busy = starter.running()  # also for a moment after its run was let go of
        if (name, runs, state, busy) == before:
            return note or {seen: gr.skip()}
        listed = {run: gr.Dropdown([(Path(each).name, each) for each in runs], value=name)}
        return {said: "", **note, **listed, **shown(name, state, busy), seen: (name, runs, state, busy)}

    def shown(name: str | None, state: State | str, busy: bool) -> dict:
        if isinstance(state, str):
            hidden = {each: gr.update(visible=False) for each in (ran, more, end, on)}
            return {now: problem(state) if name else f"<p>{state}</p>", grid: "", plot: "", **hidden}
        works, done = state.process is not None, state.step >= state.iterations
        return {
            now: status(state),
            grid: samples(state),
            plot: losses(state),
            ran: gr.Textbox(state.command, visible=True),
            more: gr.Textbox(state.resume, visible=not works and not done),
            end: gr.Button(visible=works),
            on: gr.Button(visible=not works and not done and not busy),
        }

    wanted = [images, way, iterations]
    gr.on([each.change for each in wanted], would_run, wanted, line, **quiet)
    begin.click(start, wanted, said, **quiet)
    end.click(halt, run, said, **quiet)
    on.click(resume, run, said, **quiet)
    looking = (look, [run, seen], [said, run, now, grid, plot, ran, more, end, on, seen])
    gr.on([gr.Timer(EVERY).tick, run.input], *looking, concurrency_limit=1, concurrency_id="look", **quiet)
    renew = (lambda: gr.Dropdown(choices(shelf.images())), None, images)
    return [renew, (would_run, wanted, line), looking]


def copyable(label: str, visible: bool = False) -> gr.Textbox:
    """A line that can be copied."""
    return gr.Textbox(label=label, buttons=["copy"], interactive=False, lines=2, visible=visible)


def _way(script: str) -> str:
    if script not in WAYS:
        raise UserError(f"{script} is none of the scripts that this page starts: choose one of the list")
    return script


def _images(shelf: Shelf, folder: str | None) -> Path:
    if not folder:
        raise UserError("No images are chosen: put a folder of them into train_images/ and choose it")
    return shelf.path(folder)
