"""The one family of exceptions: what a user can cause, each with a message that says what to do."""


class GenRLError(Exception):
    """A run failed, or could not start, for a reason that the message explains (exit code 1)."""


class RecipeError(GenRLError):
    """The recipe or the arguments are wrong (exit code 2)."""


class PluginError(GenRLError):
    """A plugin is broken, missing, or clashes with another one (exit code 2)."""


class RewardError(GenRLError):
    """A reward raised, or broke its contract (length, type, range)."""


class CheckpointError(GenRLError):
    """A checkpoint is missing, incomplete, damaged, or belongs to another recipe."""
