"""Many independent tasks, durably: executors (local processes now; others behind the same interface), journal, resume, deadlines, progress. Knows nothing of models."""
