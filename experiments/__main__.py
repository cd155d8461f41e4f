"""The tables of the dissertation and of its claims: their runs, and the page of results.

    python -m experiments table_7 --images TARGET_96 --reference HELD_OUT --dry-run   what is missing
    python -m experiments table_7 table_11 --images TARGET_96 --reference HELD_OUT
    python -m experiments all --images TARGET_96 --reference HELD_OUT
    python -m experiments report                                                      write the page

--judges efficientnet_lite0 efficientnet_lite2, which is the default, names the networks that score. The first
scores while a run trains, the others score its end, and with --judge-every what comes before it; what a
finished run lacks is added from its folder. No score comes from a network that the run saw through.

Table 1, on 15,000 faces and scored against 1,000 others:

    python -m experiments table_1 --images FACES --reference UNSEEN_FACES --iterations 2000 \\
        --score-every 250 --judge-every 250

A plan that several tables share runs once. What is interrupted goes on where it stopped, and the same command
started twice shares the work. all is every table whose runs are of the target domain; table_1 is of the
source domain. Tables of small data sets are of the images that their names say, each in a folder of
train_images, which operating_file.py fetch fills; notmnist, which it cannot have, is put there by hand:

    python -m experiments mnist_notmnist notmnist_mnist
    python -m experiments mnist_fashion
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tyro.conf import Positional

from experiments.report import write
from experiments.runs import PRETRAINING, Budget, make, verify
from experiments.tables import TABLES
from transfer import UserError
from transfer.settings import command_line, user_errors

if TYPE_CHECKING:
    from experiments.tables import Table


@dataclass(frozen=True)
class Settings(Budget):
    """Which tables, and what is spent on them."""

    tables: Positional[tuple[str, ...]] = ()  # their names, or all, or report


def named(names: tuple[str, ...]) -> list[Table]:
    """The tables of these names.

    Raises:
        UserError: when there is none of a name, or those of both domains are among them.
    """
    known = {table.key: table for table in TABLES}
    if names == ("all",):
        return [table for table in TABLES if not table.pretraining and not table.own_images]
    if {"all", "report"} & set(names):
        raise UserError(f"{' '.join(names)}: give all or report alone, or the names of tables")
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        given = wrong[0] if wrong else "nothing"
        raise UserError(f"{given} is not a table: give some of {', '.join(known)}, or all, or report")
    found = [known[name] for name in names]
    if len({table.pretraining for table in found}) > 1:
        raise UserError("table_1 is of the source domain: give it alone")
    return found


def main(settings: Settings) -> None:
    """Make the runs that are missing, and write the page."""
    if settings.tables != ("report",):
        tables = named(settings.tables)
        verify(tables, settings)
        make(tables, settings)
    if not settings.dry_run:
        write()


if __name__ == "__main__":
    sys.argv[0] = "python -m experiments"
    start = PRETRAINING if "table_1" in sys.argv else Budget()
    with user_errors():
        main(command_line(Settings, default=Settings(**vars(start))))
