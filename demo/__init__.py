"""The page: what is there to draw from and to train, looked at in a browser on this machine alone."""
