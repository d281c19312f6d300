"""One yaml file = one recipe; its header names the source, what is faithful, and the number to expect."""

from pathlib import Path

from ..common.plugins import Kind

RECIPES = Kind("recipes", Path(__file__).resolve().parent, suffix=".yaml")
