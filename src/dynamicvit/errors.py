"""Errors that are the input's fault. Commands print them as one line and exit with code 2."""


class InputError(ValueError):
    """A value that can't be used; the message names it and says what would be right."""


class UnsupportedBackboneError(InputError, TypeError):
    """The model is none of the families, or a variant that a family's code does not cover."""
