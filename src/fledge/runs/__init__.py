"""`fledge runs`: what there is, what a run has done, how runs and checkpoints compare, and the verdict for scripts."""
