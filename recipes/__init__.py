"""Small, self-contained training recipes for FastVideo."""
