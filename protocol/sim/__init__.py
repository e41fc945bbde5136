"""The whole swarm in one process, under virtual time, from one seed."""
