"""The NBD front end and client: protocol, transports, server, connections."""
