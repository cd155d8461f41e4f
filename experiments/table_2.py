"""Table 2: augmentation of the 96 images in two strengths, against the originals (section 4.3.2).

    python -m experiments.table_2 --images TARGET_96 --reference HELD_OUT

The dissertation shows augmented images and says that augmentation has to be kept within a range to do good;
it gives no scores. Mirroring alone and DiffAugment, which also changes what is generated, are added. 2,000
iterations of 16 images take about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main

TABLE = Table(
    "table_2",
    "Table 2: augmentation",
    "Augmentation of the real images helps on a small set when it is kept within a range.",
    tuple(
        Row(name, "wgan_64_transferlearning", {"augment": augment})
        for name, augment in (
            ("originals", "none"),
            ("mirrored", "flip"),
            ("slight: augmentation 1", "slight"),
            ("strong: augmentation 2", "strong"),
            ("DiffAugment", "diffaugment"),
        )
    ),
)

if __name__ == "__main__":
    main(TABLE)
