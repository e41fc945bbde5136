"""Preset configs that `crowdsurf create` and `crowdsurf demo` take by name; read by peer/config.py."""
