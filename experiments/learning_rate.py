"""The learning rate of a transfer, for both networks.

    python -m experiments.learning_rate --images TARGET_96 --reference HELD_OUT

The dissertation does not state its own; WGAN's is 5e-5. 2,000 iterations of 16 images take about an hour on
one AVX2 core.
"""

from experiments.tables import Row, Table, main

TABLE = Table(
    "learning_rate",
    "Learning rate",
    "Not stated in the dissertation.",
    tuple(
        Row(f"{rate:g}", "wgan_64_transferlearning", {"learning_rate": rate})
        for rate in (5e-5, 1e-4, 2e-4, 5e-4)
    ),
)

if __name__ == "__main__":
    main(TABLE)
