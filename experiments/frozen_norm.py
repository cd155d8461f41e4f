"""Batch normalisation of frozen layers: the batch's statistics or the source's.

    python -m experiments.frozen_norm --images TARGET_96 --reference HELD_OUT

The dissertation does not say which it used. G(1,2,2) D(1,2,2) is not here: the layers that it freezes have no
batch normalisation. 2,000 iterations of 16 images take about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main
from transfer.plan import Split

TABLE = Table(
    "frozen_norm",
    "Statistics of frozen layers",
    "Not stated in the dissertation.",
    tuple(
        Row(f"{frozen_norm}, G{G} D{D}", script, {"frozen_norm": frozen_norm, "G": G, "D": D})
        for script, G, D in (
            ("wgan_64_transferlearning", Split(2, 1, 2), Split(2, 1, 2)),
            ("wgan_64_freeze_layers", Split(3, 0, 2), Split(3, 0, 2)),
            ("wgan_64_freeze_layers", Split(0, 0, 5), Split(3, 0, 2)),
        )
        for frozen_norm in ("batch", "source")
    ),
)

if __name__ == "__main__":
    main(TABLE)
