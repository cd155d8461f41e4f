"""Figures 23 and 24: freezing four and three layers of G and of D (section 4.3.4).

    python -m experiments.figures_23_24 --images TARGET_96 --reference HELD_OUT

The dissertation finds that with four layers frozen the samples stay close to the source domain, and that
with three they are closer to the target; it gives no scores for these. 2,000 iterations of 16 images take
about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main
from transfer.plan import Split

TABLE = Table(
    "figures_23_24",
    "Figures 23 and 24: four and three frozen layers",
    "With four layers frozen samples stay with the source, with three they come nearer to the target.",
    (
        Row("G(4,0,1), D(4,0,1)", "wgan_64_freeze_layers", {"G": Split(4, 0, 1), "D": Split(4, 0, 1)}),
        Row("G(3,0,2), D(3,0,2)", "wgan_64_freeze_layers", {"G": Split(3, 0, 2), "D": Split(3, 0, 2)}),
    ),
)

if __name__ == "__main__":
    main(TABLE)
