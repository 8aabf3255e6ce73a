"""The stores: what keeps mail and can be read back. They know the envelope, and nothing of SMTP or of processors."""
