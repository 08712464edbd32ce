"""converters: checkpoint files between the frameworks that `bridges` knows, planned before and verified after."""
