"""Pictures of records, in one style. Reads records; computes nothing."""
