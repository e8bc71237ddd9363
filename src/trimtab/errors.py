"""The errors trimtab raises on purpose: what, where, got, wanted, a hint, and an exit code."""

from __future__ import annotations


class TrimtabError(Exception):
    """Tell the user what went wrong and what to do next.

    `message` says what, where, got and wanted; `hint` is the next action. `exit_code` is what the
    command line returns.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(TrimtabError):
    """A wrong argument, recipe or target."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read: unknown key, wrong type, YAML trap."""


class TargetError(UsageError):
    """A target that cannot be read."""


class BudgetError(TrimtabError):
    """The budget ended before any model could be trained."""

    exit_code = 4


class DataError(TrimtabError):
    """Data that cannot be used as they are."""

    exit_code = 5


class MachineError(TrimtabError):
    """The environment: a missing extra, a folder that cannot be written, a full disk."""

    exit_code = 6


class DivergedError(TrimtabError):
    """Training produced a loss or weights that are not finite."""

    exit_code = 7


class ExportError(TrimtabError):
    """An exported model that does not agree with its run."""

    exit_code = 8


class CompressError(TrimtabError):
    """An edit that cannot be made to this network, or changed nothing."""

    exit_code = 8


class BusyError(TrimtabError):
    """A run folder that another process holds."""

    exit_code = 9


class UnsafeError(TrimtabError):
    """An artifact that would run code or leave its folder when opened."""

    exit_code = 10


class Interrupted(TrimtabError):
    """Ctrl-C; what was reached is saved."""

    exit_code = 130


class Preempted(Interrupted):
    """SIGTERM; what was reached is saved, run it again."""

    exit_code = 75
