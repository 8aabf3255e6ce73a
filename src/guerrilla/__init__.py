"""The inbound mail engine: an SMTP daemon, and a package that runs each message down a production line."""
