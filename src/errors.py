"""The base class of failures that a user can act on."""


class UserError(Exception):
    """A failure whose message tells the user what to do: printed as it is, without a traceback."""
