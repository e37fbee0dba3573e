"""How fast a model is on this machine, by batch size and length, and what follows from it."""
