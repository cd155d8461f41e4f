"""A page in the browser: draw, walk between latents, compare, mix source and targets, train.

    pip install -r requirements-demo.txt
    python -m demo                              then open http://127.0.0.1:7860
    python -m demo --folders ~/Pictures/cats    more folders that the page may read

The page is for this machine alone: nothing is sent anywhere, and other machines get no answer. Ctrl-C ends
it; a run that it has started goes on.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from transfer import UserError
from transfer.settings import ROOT, Bound, command_line, user_errors

PORT = 7860
Port = Annotated[int, Bound("a port from 1024 to 65535", 1024, 65536)]


@dataclass(frozen=True)
class Settings:
    """Where the page is, and what it may read."""

    port: Port = PORT  # the page is at http://127.0.0.1:PORT
    folders: tuple[Path, ...] = ()  # of images, runs or models, beside the project's own folder


def main(settings: Settings) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: when Gradio is not installed, a folder is not there, or the port is taken.
    """
    folders = [folder.resolve() for folder in settings.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give --folders those that the page may read")
    os.chdir(ROOT)  # the commands that the page shows and starts are those of the project's folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -r requirements-demo.txt brings what the page needs"
        ) from None
    from demo.page import serve

    serve(settings.port, folders)


if __name__ == "__main__":
    sys.argv[0] = "python -m demo"
    with user_errors():
        main(command_line(Settings))
