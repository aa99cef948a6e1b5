"""Recipes, one TOML file each; `netspace.config.load_recipe` finds them by name."""
