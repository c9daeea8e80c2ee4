"""How the updates of several fine-tunes of one base relate to each other."""
