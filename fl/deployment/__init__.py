"""SuperLink and SuperNodes on one host or several: keys, certificates, processes, the gate."""
