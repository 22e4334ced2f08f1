"""Errors that are the input's fault, which commands print as one line (exit code 2); a warning."""


class InputError(ValueError):
    """A value that can't be used; the message names it and says what would be right."""


class UnsupportedBackboneError(InputError, TypeError):
    """The model is none of the families, or a variant that a family's code does not cover."""


class UntrainedWarning(UserWarning):
    """Nobody has trained what was used: prediction modules that drop, or a teacher's classifier."""
