"""What a model will need: memory and time of each stage, before a weight is there; and which options make it fit."""
