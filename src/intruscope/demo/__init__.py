"""The shipped small model, the recipe that made it, and the demonstration that fine-tunes it twice and scans both."""
