"""The engines of a run: in this process, on Ray, or on a SuperLink."""
