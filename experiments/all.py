"""Every table whose runs are of the target domain.

    python -m experiments.all --images TARGET_96 --reference HELD_OUT --dry-run     what is missing, how long
    python -m experiments.all --images TARGET_96 --reference HELD_OUT

A plan that several tables share runs once. What is interrupted goes on where it stopped. Table 1, which is of
the source domain, has its own command.
"""

from experiments.tables import every, main

if __name__ == "__main__":
    main(*(table for table in every() if not table.pretraining))
