"""How each framework stores each layer, as mappings to one canonical form (docs/mapping.md, "Conventions")."""
