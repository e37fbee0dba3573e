"""How a model's files are made ready to serve; `pull` is the page to read first."""
