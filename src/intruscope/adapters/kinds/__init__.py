"""Adapter kinds, one file each. See :mod:`intruscope.adapters.kind`."""
