"""Measurements, each compared with a named alternative in the same run. Not part of the tests."""
