"""What several tests share: the scripts by name, and tiny runs of them."""

import importlib
from pathlib import Path

from tests.conftest import LATENT, WIDTH

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("wgan_*.py"))
PRETRAINING = ("wgan_64", "wgan_gp_64")
TRANSFERS = [name for name in SCRIPTS if name.removesuffix(".py") not in PRETRAINING]
REGULARISED = "methods.wgan_64_regularised"
NAMES = [*(script.removesuffix(".py") for script in SCRIPTS), REGULARISED]
SPLITS = [(i, j, 5 - i - j) for i in range(6) for j in range(6 - i)]
TINY = {
    "iterations": 2,
    "critic_steps": 2,
    "batch_size": 4,
    "device": "cpu",
    "log_every": 1,
    "sample_every": 1,
}


def tiny(name, faces, source, out, **more):
    """The script's module, and settings with which it takes a blink."""
    script = importlib.import_module(name)
    own = {"latent": LATENT, "width": WIDTH} if name in PRETRAINING else {"source": source}
    return script, script.Settings(images=faces, out=out, **{**TINY, **own, **more})
