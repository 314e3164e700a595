"""Training: what the recipes under `recipes/` are made of. Nothing else imports it."""
