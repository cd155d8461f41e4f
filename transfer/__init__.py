"""The bench of the experiments: plans, layers, images, weights and the run folder; a script owns the rest."""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend: one sentence with what, where and how."""

    code = 2  # the program's exit status


class NoSpace(UserError):
    """Something could not be written."""

    code = 3


class Diverged(UserError):
    """The networks are no longer finite."""

    code = 4
