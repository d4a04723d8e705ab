"""How many layers SNIP leaves empty, by depth and by where the network starts."""
