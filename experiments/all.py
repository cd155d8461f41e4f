"""Every table whose runs are of the target domain.

    python -m experiments.all --images TARGET_96 --reference HELD_OUT --dry-run     what is missing, how long
    python -m experiments.all --images TARGET_96 --reference HELD_OUT

A plan that several tables share runs once. What is interrupted goes on where it stopped. Table 1, which is of
the source domain, has its own command.
"""

from experiments import (
    batch_size,
    figures_23_24,
    freeze_critic,
    from_scratch,
    frozen_norm,
    league,
    learning_rate,
    moving_average,
    table_1,
    table_2,
    table_7,
    table_11,
)
from experiments.tables import main

TABLES = tuple(
    module.TABLE
    for module in (
        table_1,
        table_2,
        figures_23_24,
        table_7,
        table_11,
        from_scratch,
        frozen_norm,
        freeze_critic,
        learning_rate,
        batch_size,
        moving_average,
        league,
    )
)

if __name__ == "__main__":
    main(*(table for table in TABLES if not table.pretraining))
