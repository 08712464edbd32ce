"""What stands behind `bridges.nnx_adapter`, a noun a file; import the public names from there."""
