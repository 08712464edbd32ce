"""The mapping engine behind `bridges.param_mapping`: templates, ops, mappings, plans. Knows no framework."""
