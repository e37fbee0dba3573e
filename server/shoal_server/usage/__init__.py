"""When models are asked for, week after week, and what will be wanted soon."""
