"""Packed number formats, one file each; see :mod:`intruscope.weights.number_formats`."""
