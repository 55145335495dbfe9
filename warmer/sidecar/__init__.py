"""What runs beside the server: harvests the kernels it builds, and answers for it over HTTP."""
