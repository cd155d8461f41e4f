"""Table 1: pre-training with WGAN and with WGAN-GP, every 1,000 iterations up to 8,000 (section 4.3.1).

    python -m experiments.table_1 --images FACES --reference UNSEEN_FACES

The dissertation shows samples without scores, finds WGAN's better, and says that another network might turn
it. Its WGAN-GP had the batch-normalised critic that the paper rules out, so both critics are here. At the
speeds of docs/performance.md 8,000 iterations would take 7 hours for WGAN and 11 for WGAN-GP on two AVX2
cores.
"""

from experiments.tables import Row, Table, main

TABLE = Table(
    "table_1",
    "Table 1: WGAN and WGAN-GP",
    "WGAN's samples are better than WGAN-GP's in the first 8,000 iterations.",
    (
        Row("WGAN", "wgan_64"),
        Row("WGAN-GP, batch-normalised critic, as in the dissertation", "wgan_gp_64", {"critic_norm": True}),
        Row("WGAN-GP, as in its paper", "wgan_gp_64"),
    ),
    pretraining=True,
)

if __name__ == "__main__":
    main(TABLE)
