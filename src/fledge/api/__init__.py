"""The Python API: what `import fledge` offers. `fledge/__init__.py` names it; nothing is loaded before it is used."""
