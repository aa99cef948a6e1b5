"""Recipes, one TOML file each; `netspace.recipe.load_recipe` finds them by name."""
