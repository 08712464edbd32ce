"""The Haiku adapter, one noun a file; `bridges.haiku_adapter` is its public face."""
