"""`fastvideo tune`: what each way to be faster costs on a model, measured, and which are worth it."""
