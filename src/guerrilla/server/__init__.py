"""The only room that opens SMTP sockets: listeners, connections, TLS and limits."""
