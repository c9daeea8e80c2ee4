"""Pure tensor mathematics: Krylov spaces, certified bounds, low-rank algebra, clusters. Knows no file and no model."""
