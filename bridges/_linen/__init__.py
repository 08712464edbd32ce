"""What stands behind `bridges.linen_adapter`, a noun a file; import the public names from there."""
