"""A deployment on one host or several: certificates, node keys, processes, and the gate."""
