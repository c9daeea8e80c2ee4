"""What every report can do: plain data and back, JSON files, tables, and a picture of itself in a notebook.

Works on any frozen dataclass through its type hints; knows no verb. Files are written through ``weights``;
nothing here computes or prints.
"""
