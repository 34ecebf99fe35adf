"""Generated images of parts with defects, for demos and tests."""
