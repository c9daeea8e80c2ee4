"""``python -m intruscope`` is the command line."""

from intruscope.cli.main import main

main()
