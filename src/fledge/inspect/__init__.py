"""Looking at data before training: statistics, checks, the account of every row, examples token by token."""
