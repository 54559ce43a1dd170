"""The door: one file a command; parse, call one api function, choose a renderer, set the exit code."""
