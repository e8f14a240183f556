"""`fledge init`: looks at files of data and writes a recipe that trains on them, with the reason for each setting."""

from fledge.new_recipe.create import create_recipe

__all__ = ["create_recipe"]
