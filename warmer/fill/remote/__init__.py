"""The remote tier: kernels in a bucket, for nodes that share no filesystem.

Objects are written once and never changed. Nobody locks the bucket: a blob's name is its sha256,
and of two who put a seal under one number the service lets one win.
"""
