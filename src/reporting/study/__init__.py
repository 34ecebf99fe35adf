"""The page of a study: several runs, their tables and figures."""
