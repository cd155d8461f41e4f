"""The page itself: its tabs, its look, and the server that only this machine's browser reaches."""

from __future__ import annotations

import socket
from html import escape
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from demo import compare, draw, mix, train, walk
from demo.controls import ONE
from demo.guard import Guard
from demo.models import Shelf
from transfer import UserError

TABS = {"Draw": draw, "Walk": walk, "Compare": compare, "Mix": mix, "Train": train}
HOST = "127.0.0.1"
TEXT = """# GAN transfer learning
Models that draw small pictures, and what becomes of them when they learn from other images: **Mix** has a
slider from one to the other. Everything happens on this machine; nothing is sent anywhere."""
FONT = ["system-ui", "sans-serif"]  # those of the machine: the page loads nothing from elsewhere
CSS = """
.shown figure { margin: 0 0 1rem; }
.shown figcaption { margin-bottom: 0.3rem; overflow-wrap: anywhere; }
.shown img { width: 100%; border-radius: 6px; display: block; }
.shown a { display: inline-block; margin: 0.3rem 0 0; padding: 0; }
.narrow figure { max-width: 640px; }
.small figure { max-width: 400px; }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.6rem; }
.shown .three figure { margin: 0; }
.problem { overflow-wrap: anywhere; padding: 0.5rem 0.8rem; border-left: 4px solid #d97706;
  background: color-mix(in srgb, #d97706 12%, transparent); }
@media (max-width: 600px) {
  .tab-container button { padding: 0 10px !important; }
  .pictures { order: -1; }  /* what a slider changes stays in sight */
}
.shown svg text { font-size: 20px; fill: currentColor; }
.bar { height: 0.8rem; border-radius: 6px; overflow: hidden; background: var(--border-color-primary); }
.bar div { height: 100%; background: var(--color-accent); }
input[role="combobox"], input[role="listbox"] { text-overflow: ellipsis; }
"""


def page(shelf: Shelf) -> gr.Blocks:
    """The tabs, each made by its own file."""

    def faults() -> gr.HTML:
        found = shelf.look().faults
        lines = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in found.items())
        what = f"Not usable: {len(found)} file{'s' * (len(found) > 1)} or run{'s' * (len(found) > 1)}"
        shown = f"<details class='problem'><summary>{what}</summary><ul>{lines}</ul></details>"
        return gr.HTML(shown, visible=bool(found))

    with gr.Blocks(title="GAN transfer learning", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gr.Markdown(TEXT)
        broken = gr.HTML(visible=False)
        blocks.load(faults, None, broken, api_visibility="private", show_progress="hidden")
        for number, (title, tab) in enumerate(TABS.items()):
            with gr.Tab(title) as own:
                events = tab.build(shelf)
            for event in events:
                own.select(*event, **ONE)
                if number == 0:
                    blocks.load(*event, **ONE)
    return blocks


def application(shelf: Shelf) -> Guard:
    """The page as an ASGI application that refuses whoever is not its own browser."""
    blocks = page(shelf)
    blocks.queue(default_concurrency_limit=2)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), blocks, "/", theme=gr.themes.Default(font=FONT, font_mono=["monospace"]),
        css=CSS, footer_links=[], ssr_mode=False, max_file_size=1,
    )  # fmt: skip
    return Guard(app)


def serve(port: int, folders: list[Path]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: when the port is taken.
    """
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} cannot be had ({error.strerror}): give another --port") from None
        config = uvicorn.Config(application(Shelf(folders)), log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        print(f"the page is at http://{HOST}:{port}, for this machine alone; Ctrl-C ends it", flush=True)
        server.run(sockets=[own])
