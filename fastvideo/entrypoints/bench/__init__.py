"""`fastvideo bench`: ours beside `diffusers`, alternately, on the same weights."""
