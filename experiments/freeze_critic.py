"""How many of the critic's layers to freeze, under a generator that is fine-tuned throughout (FreezeD).

    python -m experiments.freeze_critic --images TARGET_96 --reference HELD_OUT

The dissertation freezes layers in both networks. Here frozen layers are normalised with the source's
statistics. 1,000 iterations of 16 images take a quarter of an hour on one AVX512-BF16 core.
"""

from experiments.tables import Row, Table, main
from transfer.plan import Split

TABLE = Table(
    "freeze_critic",
    "Frozen layers of the critic",
    "Not stated in the dissertation, which freezes layers in both networks.",
    tuple(
        Row(
            f"D{D}, G{G}, the source's statistics",
            "wgan_64_freeze_layers",
            {"G": G, "D": D, "frozen_norm": "source"},
        )
        for D, G in (
            (Split(1, 0, 4), Split(0, 0, 5)),
            (Split(2, 0, 3), Split(0, 0, 5)),
            (Split(3, 0, 2), Split(0, 0, 5)),
            (Split(4, 0, 1), Split(0, 0, 5)),
            (Split(3, 0, 2), Split(1, 2, 2)),
        )
    ),
)

if __name__ == "__main__":
    main(TABLE)
