"""The tables: what the dissertation compares and what its text claims, as data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiments.pairs import PAIRS
from experiments.rows import Row, Table, named
from transfer.plan import Named, Split

COMBINED, FINETUNED, FROZEN = Split(1, 2, 2), Split(0, 0, 5), Split(3, 0, 2)

# Section 4.3.1. The dissertation shows samples without scores, and says that another network might turn its
# finding. Its WGAN-GP had the batch-normalised critic that the paper rules out, so both critics are here.
TABLE_1 = Table(
    "table_1",
    "Table 1: WGAN and WGAN-GP",
    "WGAN's samples are better than WGAN-GP's in the first 8,000 iterations.",
    (
        Row("WGAN", "wgan_64", figure="Table 1", claim="Better than WGAN-GP."),
        Row(
            "WGAN-GP, batch-normalised critic, as in the dissertation",
            "wgan_gp_64",
            {"critic_norm": True},
            figure="Table 1",
            claim="Not better than WGAN.",
        ),
        Row("WGAN-GP, as in its paper", "wgan_gp_64", figure="Table 1", claim="It does not have this one."),
    ),
    pretraining=True,
)

# Section 4.3.2, which gives no scores; what is said of overfitting is in 5.4. Mirroring alone and
# DiffAugment, which also changes what is generated, are added.
TABLE_2 = Table(
    "table_2",
    "Table 2: augmentation",
    "Augmentation of the real images helps on a small set when it is kept within a range.",
    tuple(
        Row(
            named(COMBINED, COMBINED, name),
            "wgan_64_transferlearning",
            {"augment": how},
            figure="Table 2",
            claim=claim,
        )
        for name, how, claim in (
            ("originals", "none", "The risk of overfitting is higher."),
            ("mirrored", "flip", "It does not have this one."),
            ("slight: augmentation 1", "slight", "The risk of overfitting is lower."),
            ("strong: augmentation 2", "strong", "The risk of overfitting is lower."),
            ("DiffAugment", "diffaugment", "It does not have this one."),
        )
    ),
    caption="Sixteen of the cartoon faces, as they are; below them slight (augmentation 1) and strong"
    " (augmentation 2), which change the real images alone; at the bottom DiffAugment.",
)

# Section 4.3.4, which gives no scores for these.
FIGURES_23_24 = Table(
    "figures_23_24",
    "Figures 23 and 24: four and three frozen layers",
    "With four layers frozen samples stay with the source, with three they come nearer to the target.",
    (
        Row(
            "G(4,0,1) D(4,0,1)",
            "wgan_64_freeze_layers",
            {"G": Split(4, 0, 1), "D": Split(4, 0, 1)},
            figure="Figure 23",
            claim="The images are closer to the source domain.",
        ),
        Row(
            "G(3,0,2) D(3,0,2)",
            "wgan_64_freeze_layers",
            {"G": Split(3, 0, 2), "D": Split(3, 0, 2)},
            figure="Figure 24",
            claim="The images are obviously closer to the target domain.",
        ),
    ),
)

# Section 4.3.5, with FIDs after up to 20,000 iterations. One network fine-tuned throughout beside the other's
# combination is added.
TABLE_7 = Table(
    "table_7",
    "Tables 3 to 7: combinations",
    "G(1,2,2) D(1,2,2) is the best of its four.",
    tuple(
        Row(named(G, D), "wgan_64_transferlearning", {"D": D, "G": G}, published, figure)
        for G, D, published, figure in (
            (Split(2, 1, 2), Split(2, 1, 2), 220, "Table 3"),
            (COMBINED, COMBINED, 195, "Table 4"),
            (FROZEN, COMBINED, 204, "Table 5"),
            (COMBINED, FROZEN, 223, "Table 6"),
            (COMBINED, FINETUNED, None, ""),
            (FINETUNED, COMBINED, None, ""),
        )
    ),
)

# Section 4.3.6, with FIDs after up to 20,000 iterations.
TABLE_11 = Table(
    "table_11",
    "Tables 8 to 11: the combination and each method alone",
    "The combination is better than each of its methods; scale and shift everywhere is the worst.",
    (
        Row("G(0,0,5) D(0,0,5)", "wgan_64_finetune", {}, 209, "Table 8"),
        Row("G(3,0,2) D(3,0,2)", "wgan_64_freeze_layers", {"G": FROZEN, "D": FROZEN}, 225, "Table 9"),
        Row("G(0,5,0) D(0,5,0)", "wgan_64_scale_shift", {}, 236, "Table 10"),
        Row("G(1,2,2) D(1,2,2)", "wgan_64_transferlearning", {"D": COMBINED, "G": COMBINED}, 195),
    ),
)

# Chapters 1 and 5, without a table. Both learning rates of the scripts are tried from scratch. Between the
# two stand transfers of one network alone: the other one starts from random numbers and learns everything.
ANEW = Named(["reinitialise"] * 5)
FROM_SCRATCH = Table(
    "from_scratch",
    "Transfer and training from scratch",
    "Training from scratch needs many more images than transfer.",
    (
        Row("G(1,2,2) D(1,2,2)", "wgan_64_transferlearning"),
        Row("G(0,0,5) D(0,0,5)", "wgan_64_finetune"),
        Row("G(1,2,2), D from scratch", "wgan_64_transferlearning", {"D": ANEW}),
        Row("G(0,0,5), D from scratch", "wgan_64_transferlearning", {"D": ANEW, "G": Split(0, 0, 5)}),
        Row("D(1,2,2), G from scratch", "wgan_64_transferlearning", {"G": ANEW}),
        Row("from scratch, not augmented", "wgan_64", {"augment": "none", "learning_rate": 2e-4}),
        Row("from scratch, DiffAugment", "wgan_64", {"augment": "diffaugment", "learning_rate": 2e-4}),
        Row("from scratch, DiffAugment, 5e-5", "wgan_64", {"augment": "diffaugment"}),
    ),
)

# Batch normalisation of frozen layers: the batch's statistics or the source's. G(1,2,2) D(1,2,2) is not here:
# the layers that it freezes have no batch normalisation.
FROZEN_NORM = Table(
    "frozen_norm",
    "Statistics of frozen layers",
    "Not stated in the dissertation.",
    tuple(
        Row(named(G, D, f"{frozen_norm}'s statistics"), script, {"frozen_norm": frozen_norm, "G": G, "D": D})
        for script, G, D in (
            ("wgan_64_transferlearning", Split(2, 1, 2), Split(2, 1, 2)),
            ("wgan_64_freeze_layers", Split(3, 0, 2), Split(3, 0, 2)),
            ("wgan_64_freeze_layers", Split(0, 0, 5), Split(3, 0, 2)),
        )
        for frozen_norm in ("batch", "source")
    ),
)

# How many of the critic's layers to freeze, under a generator that is fine-tuned throughout (FreezeD). Frozen
# layers are normalised with the source's statistics.
FREEZE_CRITIC = Table(
    "freeze_critic",
    "Frozen layers of the critic",
    "Not stated in the dissertation, which freezes layers in both networks.",
    tuple(
        Row(
            named(G, D, "source's statistics"),
            "wgan_64_freeze_layers",
            {"G": G, "D": D, "frozen_norm": "source"},
        )
        for D, G in (
            (Split(1, 0, 4), Split(0, 0, 5)),
            (Split(2, 0, 3), Split(0, 0, 5)),
            (Split(3, 0, 2), Split(0, 0, 5)),
            (Split(4, 0, 1), Split(0, 0, 5)),
            (Split(3, 0, 2), Split(1, 2, 2)),
        )
    ),
)

# For both networks; WGAN's own is 5e-5.
LEARNING_RATE = Table(
    "learning_rate",
    "Learning rate",
    "Not stated in the dissertation.",
    tuple(
        Row(named(COMBINED, COMBINED, f"rate {rate:g}"), "wgan_64_transferlearning", {"learning_rate": rate})
        for rate in (5e-5, 1e-4, 2e-4, 5e-4)
    ),
)

# Each run's generator makes as many images as --iterations of --batch-size do: half the batch, twice the
# iterations.
BATCH_SIZE = Table(
    "batch_size",
    "Batch size and critic steps",
    "Not stated in the dissertation.",
    tuple(
        Row(
            named(COMBINED, COMBINED, f"batches of {size}, {steps} critic steps"),
            "wgan_64_transferlearning",
            {"batch_size": size, "critic_steps": steps},
        )
        for size, steps in ((64, 5), (32, 5), (16, 5), (16, 2), (8, 5))
    ),
)

# RMSprop's first steps are ten times the learning rate; adam is RMSprop with that corrected.
OPTIMIZER = Table(
    "optimizer",
    "The optimizer's first steps",
    "Not stated in the dissertation.",
    tuple(
        Row(named(plan, plan, name), script, {"optimizer": name, "frozen_norm": "source"})
        for plan, script in (
            (COMBINED, "wgan_64_transferlearning"),
            (FINETUNED, "wgan_64_finetune"),
        )
        for name in ("rmsprop", "adam")
    ),
)

# 0 is the generator itself. Training is the same to the bit whatever the decay.
MOVING_AVERAGE = Table(
    "moving_average",
    "Moving average of the generator",
    "Not stated in the dissertation, which samples the generator itself.",
    tuple(
        Row(named(COMBINED, COMBINED, f"decay {decay:g}"), "wgan_64_transferlearning", {"ema_decay": decay})
        for decay in (0.0, 0.99, 0.999)
    ),
)

# Chapter 2 under one roof: policies are applied to every layer of both networks, or freeze layers of the
# critic; terms of the loss and the augmentation that adapts itself go with fine-tuning everything, which they
# are to hold back. The terms have one weight each, with which their gradient is some tenth of the whole after
# 40 iterations (batch 16); it was not tuned further.
EVERYTHING = {"G": FINETUNED, "D": FINETUNED}


def regularised(name: str, **settings: float) -> Row:
    """Fine-tuning of everything with a term of the loss."""
    return Row(named(FINETUNED, FINETUNED, name), "wgan_64_regularised", {**EVERYTHING, **settings})


# The sources: one that a critic that sees has trained, the one that the six scripts start from, one of free
# drawings, and one trained with a gradient penalty.
SEEN, FIRST, FREE, GP = (
    Path(f"pretrained_model/{name}_64.safetensors") for name in ("projected", "wgan", "avatars", "wgan_gp")
)

# A critic that sees, and what it is compared with. Heads that may look closer and features that drift are its
# default; a row says where they do not.
PLAIN = {"closer": 0, "drift": 0.0}  # heads look at images of one size, and features do not drift
SEES = tuple(
    Row(
        f"G(0,0,5) D(2,0,3), {title} from {source.stem}",
        script,
        {"G": Split(0, 0, 5), "D": Split(2, 0, 3), "frozen_norm": "source", "source": source, **more},
    )
    for script, title, source, more in (
        ("projected_critic", "a critic that sees,", SEEN, {"closer": 192, "drift": 0.3}),
        ("projected_critic", "a critic that sees, 128 pixels, no drift,", FIRST, PLAIN),
        ("wgan_64_freeze_layers", "source's statistics,", SEEN, {}),
        ("projected_critic", "a critic that sees,", FREE, {"closer": 192, "drift": 0.3}),
    )
)

# The first of them with features that do not drift, and heads that always look at images of one size.
VARIED = tuple(
    Row(f"{SEES[0].name}, {title}", SEES[0].script, SEES[0].settings | more)
    for title, more in (
        ("no drift", {"drift": 0.0}),
        ("128 pixels, no drift", {"stretch": 128, **PLAIN}),
        ("192 pixels, no drift", {"stretch": 192, **PLAIN}),
    )
)

# What experiments.suggest would choose by importance alone, beside the plans that it is compared with, under
# the six scripts' critic and under one that sees. It is the same plan on the anime faces and on the cartoons.
IMPORTANT = {
    "G": Named(["adafm", "finetune", "finetune", "adafm", "freeze"]),
    "D": Named(["freeze", "adafm", "finetune", "finetune", "adafm"]),
    "frozen_norm": "source",
}
AT_128 = {"frozen_norm": "source", "source": SEEN, **PLAIN}
NAME_128 = "a critic that sees, 128 pixels, no drift"
PROPOSED = Table(
    "proposed",
    "Plans by importance",
    "Not stated in the dissertation, which says that users need to try combinations.",
    (
        Row("by importance", "wgan_64_transferlearning", IMPORTANT),
        Row("G(0,0,5) D(0,0,5)", "wgan_64_finetune"),
        Row("G(1,2,2) D(1,2,2)", "wgan_64_transferlearning"),
        *(row for row in FREEZE_CRITIC.rows if row.settings["D"] == Split(2, 0, 3)),
        Row(f"by importance, {NAME_128}", "projected_critic", IMPORTANT | AT_128),
        *(
            Row(named(G, D, NAME_128), "projected_critic", {"G": G, "D": D} | AT_128)
            for G, D in (
                (FINETUNED, FINETUNED),
                (COMBINED, COMBINED),
                (FINETUNED, Split(2, 0, 3)),
                (FINETUNED, Split(3, 0, 2)),
            )
        ),
    ),
    first=True,
)

LEAGUE = Table(
    "league",
    "The methods of chapter 2",
    "The combination of three methods is better than each alone.",
    (
        *(replace(row, figure="") for row in TABLE_11.rows),
        *(replace(row, figure="") for row in TABLE_7.rows if row.name != "G(1,2,2) D(1,2,2)"),
        *(
            Row(f"G(0,5,0) D(0,5,0), {title}", "wgan_64_scale_shift", {"rescale": rescale})
            for rescale, title in (
                ("normalised_adafm", "normalised (GAN memory)"),
                ("filter_selection", "filter selection (BSA)"),
                ("singular_values", "singular values (FSGAN)"),
                ("rank_one", "rank one (AdAM)"),
            )
        ),
        Row("G(0,0,5) D(3,0,2), batch's statistics", "wgan_64_freeze_layers", {"G": Split(0, 0, 5)}),
        *FREEZE_CRITIC.rows,
        regularised("L2-SP", l2_sp=100.0),
        regularised("feature distillation", distillation=1000.0),
        regularised("elastic weights (EWC)", ewc=1e-3),
        regularised("distance consistency (CDC)", consistency=1000.0),
        regularised("LeCam", lecam=0.3),
        regularised("adaptive augmentation", adapt=16),
        Row("G(0,5,0), latent optimization (BSA)", "generative_latent_optimization"),
        Row("Mind2Mind", "mind2mind", {"autoencoder": 100}),
        Row("G(5,0,0) D(0,0,5), MineGAN", "minegan"),
        Row("G(0,0,5) D(0,0,5), gradient penalty", "wgan_64_finetune", {"loss": "wgan_gp"}),
        Row("G(0,0,5) D(0,0,5), gradient penalty, from wgan_gp_64", "wgan_64_finetune", {"source": GP}),
        *SEES,
        *VARIED,
        *(row for row in FROM_SCRATCH.rows if row.script == "wgan_64"),
    ),
)

TABLES = (
    TABLE_1,
    TABLE_2,
    FIGURES_23_24,
    TABLE_7,
    TABLE_11,
    FROM_SCRATCH,
    FROZEN_NORM,
    FREEZE_CRITIC,
    LEARNING_RATE,
    OPTIMIZER,
    BATCH_SIZE,
    MOVING_AVERAGE,
    PROPOSED,
    *PAIRS,
    LEAGUE,
)
