"""A strip of a run: the same latents, one row for each of some iterations, from the run's own grids.

python -m experiments.strip target_domain/0001-... docs/pictures/cartoon.png --steps 0 100 200 300
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tyro.conf import Positional

from transfer import UserError
from transfer.folder import grids
from transfer.settings import command_line, user_errors

TILE = 64  # pixels, of one image in a grid


@dataclass(frozen=True)
class Settings:
    """Which run, and what of it."""

    run: Positional[Path]  # the run's folder
    file: Positional[Path]  # the PNG to write
    steps: tuple[int, ...] = ()  # the iterations to show; all whose grid was kept, unless given
    columns: int = 16  # latents to show, of the grid's 64


def main(settings: Settings) -> None:
    """Write the strip.

    Raises:
        UserError: when the run has no grid of one of the iterations.
    """
    found, rows = grids(settings.run), []
    if not found:
        raise UserError(f"{settings.run} has no grid in samples: give another run")
    for step in settings.steps or found:
        if step not in found:
            raise UserError(f"{settings.run} has no grid of iteration {step}: it has {[*found]}")
        grid = np.asarray(found[step])
        tiles = (
            grid.reshape(grid.shape[0] // TILE, TILE, -1, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
        )
        rows.append(np.concatenate(tiles[: settings.columns], axis=1))
    settings.file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(settings.file, optimize=True)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
