"""Names under which newer scripts import what lives elsewhere."""
