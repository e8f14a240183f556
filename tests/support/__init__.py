"""What tests of several rooms share: tiny models, small runs, sources of data, processes to kill."""
