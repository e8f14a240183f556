"""`fledge sweep`: a search over keys of a recipe. A trial is a setting; it is measured by runs of several seeds."""
