"""The batch size of a transfer and its critic steps, when the generator makes as many images.

    python -m experiments.batch_size --images TARGET_96 --reference HELD_OUT

The dissertation does not state its own. Each run's generator makes as many images as --iterations of
--batch-size do: half the batch, twice the iterations. 2,000 iterations of 16 images take about an hour on
one AVX2 core.
"""

from experiments.tables import Row, Table, main

TABLE = Table(
    "batch_size",
    "Batch size and critic steps",
    "Not stated in the dissertation.",
    tuple(
        Row(
            f"batches of {size}, {steps} critic steps",
            "wgan_64_transferlearning",
            {"batch_size": size, "critic_steps": steps},
        )
        for size, steps in ((64, 5), (32, 5), (16, 5), (16, 2), (8, 5))
    ),
)

if __name__ == "__main__":
    main(TABLE)
