"""`python -m trimtab`."""

from trimtab.cli import command

command()
