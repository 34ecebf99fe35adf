"""Pages, tables and figures of runs, studies and audits."""
