"""The loop: from a recipe and films to a run folder with chosen weights."""
