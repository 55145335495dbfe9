"""Whether weights and kernels belong on a volume: what each way to start costs, and takes."""
