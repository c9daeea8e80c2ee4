"""How figures and foreign names are written, for the pages and tables of every verb."""

from intruscope.errors import printable_text
from intruscope.spectra.words import percent

__all__ = ["percent", "printable_text"]
