"""HTML pages, terminal tables, JSON, Parquet and CSV of records. Renders; computes nothing."""
