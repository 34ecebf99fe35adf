"""Where a run runs: in this process, on Ray, or submitted to a SuperLink."""
