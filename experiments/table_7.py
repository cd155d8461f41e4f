"""Tables 3 to 7: four combinations of freezing, scale and shift, and fine-tuning (section 4.3.5).

    python -m experiments.table_7 --images TARGET_96 --reference HELD_OUT

The dissertation's FIDs after up to 20,000 iterations are 220, 195, 204 and 223: D(1,2,2) G(1,2,2) is the
best. One network fine-tuned throughout beside the other's combination is added. 2,000 iterations of 16 images
take about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main
from transfer.plan import Split

TABLE = Table(
    "table_7",
    "Tables 3 to 7: combinations",
    "D(1,2,2), G(1,2,2) is the best of its four.",
    tuple(
        Row(name, "wgan_64_transferlearning", {"D": Split(*D), "G": Split(*G)}, published)
        for name, D, G, published in (
            ("D(2,1,2), G(2,1,2)", (2, 1, 2), (2, 1, 2), 220),
            ("D(1,2,2), G(1,2,2)", (1, 2, 2), (1, 2, 2), 195),
            ("D(1,2,2), G(3,0,2)", (1, 2, 2), (3, 0, 2), 204),
            ("D(3,0,2), G(1,2,2)", (3, 0, 2), (1, 2, 2), 223),
            ("D(0,0,5), G(1,2,2)", (0, 0, 5), (1, 2, 2), None),
            ("D(1,2,2), G(0,0,5)", (1, 2, 2), (0, 0, 5), None),
        )
    ),
)

if __name__ == "__main__":
    main(TABLE)
