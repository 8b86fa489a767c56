"""Which model, what its files hold, and how it is loaded and fitted into memory."""
