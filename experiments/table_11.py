"""Tables 8 to 11: each method alone, against the combination (section 4.3.6).

    python -m experiments.table_11 --images TARGET_96 --reference HELD_OUT

The dissertation's FIDs after up to 20,000 iterations are 209 for fine-tuning, 225 for freezing three
layers, 236 for scale and shift everywhere and 195 for D(1,2,2) G(1,2,2). 2,000 iterations of 16 images take
about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main
from transfer.plan import Split

TABLE = Table(
    "table_11",
    "Tables 8 to 11: the combination and each method alone",
    "The combination is better than each of its methods; scale and shift everywhere is the worst.",
    (
        Row("Model fine-tuning", "wgan_64_finetune", {}, 209),
        Row("Frozen layers", "wgan_64_freeze_layers", {"G": Split(3, 0, 2), "D": Split(3, 0, 2)}, 225),
        Row("Update scale and shift", "wgan_64_scale_shift", {}, 236),
        Row(
            "Combination-D(1,2,2), G(1,2,2)",
            "wgan_64_transferlearning",
            {"D": Split(1, 2, 2), "G": Split(1, 2, 2)},
            195,
        ),
    ),
)

if __name__ == "__main__":
    main(TABLE)
