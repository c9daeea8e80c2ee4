"""Several fine-tunes of one base as one: spaces in which updates are written, rules that combine them."""
