"""`fledge tune`: a learning rate or a batch for a stage, found by short runs, as a patch of the recipe with its evidence."""
