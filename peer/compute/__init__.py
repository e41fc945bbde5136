"""The compute worker: tensors live in a process of their own; the daemon imports `client`, `segments`, `errors`."""
