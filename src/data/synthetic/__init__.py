"""Generated parts with defects: a data set for demos and tests."""
