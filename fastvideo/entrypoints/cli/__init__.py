"""The command line, `fastvideo`."""
