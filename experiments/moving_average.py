"""The decay of the generator's moving average, which is what is sampled; 0 is the generator itself.

    python -m experiments.moving_average --images TARGET_96 --reference HELD_OUT

The dissertation samples the generator. Training is the same to the bit whatever the decay. 2,000 iterations
of 16 images take about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main

TABLE = Table(
    "moving_average",
    "Moving average of the generator",
    "Not stated in the dissertation, which samples the generator itself.",
    tuple(
        Row(f"{decay:g}", "wgan_64_transferlearning", {"ema_decay": decay}) for decay in (0.0, 0.99, 0.999)
    ),
)

if __name__ == "__main__":
    main(TABLE)
