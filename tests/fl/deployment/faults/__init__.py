"""A ClientApp for the tests of faults."""
