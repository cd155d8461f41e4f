"""The pairs of small data sets that Mind2Mind is tried on (2.2), as tables."""

from __future__ import annotations

from pathlib import Path

from experiments.rows import Row, Table

# Section 2.2, without figures. Mind2Mind on its own data: an autoencoder of one set from nothing and a GAN of
# the codes of the other, beside a WGAN-GP of the other's pixels, as in its paper. The iterations are those
# that take the same minutes of one core. A tenth of the images is held out. Scores see a grey image as three
# equal channels.
SMALL = {"size": 32, "channels": 1, "width": 16, "batch_size": 64, "augment": "none", "hold_out": 0.1}
SMALL |= {"save_every": 500}
PLACE = Path("train_images")  # where operating_file.py fetch puts them


def pair(source: str, target: str) -> Table:
    """The table of two small data sets, by the names of their folders."""
    images = {"images": PLACE / target, **SMALL}
    own = {"source": None, "source_images": PLACE / source, "autoencoder": 2_000, "learning_rate": 5e-4}
    codes = {"iterations": 5_000, "score_every": 2_500, "sample_every": 1_000}
    pixels = {"iterations": 1_000, "score_every": 500, "sample_every": 250, "learning_rate": 2e-4}
    mind = Row(f"Mind2Mind from {source}", "mind2mind", {**images, **own, **codes})
    scratch = Row("WGAN-GP from scratch", "wgan_gp_64", {**images, **pixels})
    claim = "Learning codes in the place of pixels saves much of the time."
    title = f"Mind2Mind from {source} to {target}"
    return Table(f"{source}_{target}", title, claim, (mind, scratch), own_images=True)


PAIRS = tuple(pair("mnist", target) for target in ("notmnist", "kmnist", "fashion"))
PAIRS += (pair("notmnist", "mnist"),)
