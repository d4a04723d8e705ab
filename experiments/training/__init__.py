"""Methods by name, and modules kept for studies that import from here."""
