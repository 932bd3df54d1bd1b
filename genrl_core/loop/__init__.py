"""The method: prompts in, better weights out. It knows no recipe, no file and no screen."""
