"""Finding which variables of one model are which of another, by what the two models do: the engine of `infer_mapping`."""
