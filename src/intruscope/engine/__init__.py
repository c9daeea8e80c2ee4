"""Many independent tasks, durably: executors, journal, resume, deadlines, progress.

Executors are local processes now; others can stand behind the same interface. Knows nothing of
models, prints nothing, and never imports torch: workers import what their function needs.
"""
