"""A run of a recipe: its folder, checkpoints, screen, and how its parts are built."""
