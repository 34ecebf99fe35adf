"""A ClientApp for tests of faults: it answers with drawn banks, when it is told to."""
