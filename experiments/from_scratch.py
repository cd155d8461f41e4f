"""Transfer against training from scratch on the 96 images, with and without augmentation (chapters 1 and 5).

    python -m experiments.from_scratch --images TARGET_96 --reference HELD_OUT

The dissertation says, without a table, that training from scratch needs far more images than transfer does.
Both learning rates of the scripts are tried from scratch. Between the two stand transfers of one network
alone: the other one starts from random numbers and learns everything. 2,000 iterations of 16 images take
about an hour on one AVX2 core.
"""

from experiments.tables import Row, Table, main
from transfer.plan import LAYERS, Layers, Split

ANEW = Layers(["reinitialise"] * LAYERS)

TABLE = Table(
    "from_scratch",
    "Transfer and training from scratch",
    "Training from scratch needs many more images than transfer.",
    (
        Row("transfer, D(1,2,2), G(1,2,2)", "wgan_64_transferlearning"),
        Row("transfer, everything fine-tuned", "wgan_64_finetune"),
        Row("G alone transferred, G(1,2,2)", "wgan_64_transferlearning", {"D": ANEW}),
        Row("G alone transferred, fine-tuned", "wgan_64_transferlearning", {"D": ANEW, "G": Split(0, 0, 5)}),
        Row("D alone transferred, D(1,2,2)", "wgan_64_transferlearning", {"G": ANEW}),
        Row("from scratch, not augmented", "wgan_64", {"augment": "none", "learning_rate": 2e-4}),
        Row("from scratch, DiffAugment", "wgan_64", {"augment": "diffaugment", "learning_rate": 2e-4}),
        Row("from scratch, DiffAugment, 5e-5", "wgan_64", {"augment": "diffaugment"}),
    ),
)

if __name__ == "__main__":
    main(TABLE)
