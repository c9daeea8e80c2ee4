"""The notions of the paper: alignment and intruders, similarity maps, effective rank, energy, null model, and the scan that applies them to every pair."""
