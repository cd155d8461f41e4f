"""The batch size of a transfer, when as many images are drawn: smaller batches make more steps of them.

    python -m experiments.batch_size --images TARGET_96 --reference HELD_OUT

The dissertation does not state its own. --iterations are those of batches of 64; a batch of 16 makes four
times as many, in about the same time. 2,000 iterations of 64 images would take 100 minutes on two AVX2 cores.
"""

from experiments.tables import Row, Table, main

TABLE = Table(
    "batch_size",
    "Batch size",
    "Not stated in the dissertation.",
    tuple(
        Row(f"batches of {size}", "wgan_64_transferlearning", {"batch_size": size})
        for size in (64, 32, 16, 8)
    ),
)

if __name__ == "__main__":
    main(TABLE)
