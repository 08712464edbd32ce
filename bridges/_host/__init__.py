"""What makes a part of any framework a part of another one: used by `ToNNX`, `ToLinen` and `ToHaiku`. Knows no framework."""
